"""`llmgym plan`, which is `llmgym train --dry-run`: what a run would take; loads no weights."""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch

from llmgym.data.mixture import quotas
from llmgym.errors import LLMGymError
from llmgym.registry import spec
from llmgym.vector import LLMVectorEnv
from trainers.backends.zero.setup import Zero
from trainers.cli.arguments import Launch
from trainers.cli.doctor import available_memory
from trainers.cli.early import LLMGYM_PREFIX
from trainers.collect.env_slots import make_envs
from trainers.collect.environments import constructing, text_envs
from trainers.config import Config
from trainers.config.checks import remarks
from trainers.config.environments import env_kwargs
from trainers.config.files import dump
from trainers.distributed.collectives import World
from trainers.errors import ConfigError
from trainers.models.hf_logging import without_progress_bars
from trainers.models.loading import count_parameters, load_chat, load_tokenizer
from trainers.models.mlp import build_control
from trainers.plan.batch import BatchShape
from trainers.plan.forecast import Forecast, forecast_control, forecast_text
from trainers.plan.lengths import Lengths, at_limits, measured_lengths, mixed_lengths
from trainers.plan.pace import ASSUMED, BETWEEN, WITHIN, Pace, on_threads, one_thread, probed, tried
from trainers.plan.page import figures, text
from trainers.plan.shapes import Shapes, shapes_of
from trainers.plan.state import Holding
from trainers.runner.assemble import (
    check_prompts,
    check_shares,
    compute_dtype,
    cpu_multiplies_bf16,
    engines_json,
)
from trainers.supervised.preference_data import labeled_examples, preferences
from trainers.supervised.sft_data import demonstrations

_log = logging.getLogger(__name__)


def show_plan(config: Config, launch: Launch) -> int:
    """Print the settings and the forecast.

    Raises:
        ConfigError: a setting is not allowed, or the model's sizes cannot be known.
        gymnasium.error.NameNotFound: no such environment.
    """
    without_progress_bars()
    elsewhere = config.backend.gpus is not None  # the run is not of this machine's CPU
    for message in remarks(
        config,
        has_gpu=torch.cuda.is_available(),
        cpu_has_bf16=elsewhere or cpu_multiplies_bf16(),
    ):
        _log.warning("%s", message)
    ranks = config.backend.ranks or World.from_launcher().size
    pace, lengths, engines = None, None, {}
    if not launch.is_json and not launch.is_quiet:
        print(dump(config), flush=True)  # before a large model is counted
    if config.is_control:
        forecast = _control(config)
    else:
        forecast, pace, lengths, engines = _text(config, ranks)
    if launch.is_json:
        print(json.dumps({**figures(config, forecast, pace, lengths), "deepspeed": engines}))
    else:
        if engines and not launch.is_quiet:
            print(json.dumps(engines, indent=2), end="\n\n")
        page = text(
            config,
            forecast,
            pace=pace,
            lengths=lengths,
            memory=_room(forecast, ranks) if _is_here(config) else None,
            disk=_free(Path(config.run.dir)) if _is_here(config) else None,
        )
        print(page)
    check_shares(config, World(size=ranks))  # last: the arithmetic shows what does not divide
    return 0


def _text(config: Config, ranks: int) -> tuple[Forecast, Pace, Lengths, dict[str, Any]]:
    """Forecast a text run; return its pace, its texts and what DeepSpeed is given as well."""
    if config.ppo.num_iterations or config.data.path is None:
        for env in config.envs:
            spec(env.id)
    is_gpu = config.backend.gpus is not None or torch.cuda.is_available()
    shapes = shapes_of(config)
    dtype = _dtype(config, shapes, is_gpu=is_gpu)
    zero = Zero.of(config, World(size=ranks), dtype, on_gpu=is_gpu)
    engines = {} if zero is None else engines_json(config, zero)
    if zero is not None and zero.has_bf16_weights:
        shapes = shapes_of(config, torch.bfloat16)
    holding = Holding(ranks=ranks, is_gpu=is_gpu, json=engines.get("policy"))
    forecast = forecast_text(config, shapes, dtype=dtype, holding=holding)
    lengths = _lengths(config)
    link = WITHIN if is_gpu and config.backend.nodes == 1 else BETWEEN
    pace = replace(_pace(config, shapes, dtype, lengths, is_gpu=is_gpu), link=link)
    return forecast, pace, lengths, engines


def _lengths(config: Config) -> Lengths:
    """Return how long texts are, by the run's environment where its tasks are there.

    Raises:
        ConfigError: a run would refuse its prompts.
        TaskSourceError: a run would refuse its rows.
    """
    _read_rows(config)
    has_reward = any(reward.source for reward in config.rewards)
    reward = {"name": "constant"} if has_reward else None  # nothing is scored
    if len(config.envs) > 1:
        shares = quotas([env.weight for env in config.envs], config.ppo.num_prompts)
        return mixed_lengths([_lengths(alone) for alone in config.alone], shares)
    with ExitStack() as stack:
        made = []
        for held_out in (False, True) if config.eval.num_tasks else (False,):
            try:
                envs = text_envs(config, 1, env=None, reward=reward, held_out=held_out)
            except (ConfigError, LLMGymError, OSError) as error:
                if _reads_here(config):
                    raise
                _log.warning("no task was looked at, so lengths are assumed: %s", error)
                return at_limits(config)
            made.append(stack.enter_context(closing(envs)))
        _check_prompts(config, made)
        return measured_lengths(config, made[0].envs[0])


def _read_rows(config: Config) -> None:
    """Read the rows of a supervised stage as it does, where they are on this machine."""
    path, limit = config.data.path, config.data.num_examples
    if path is None or not Path(path).exists():
        return
    if config.sft.num_epochs:
        demonstrations(config, [])
    if config.reward_model.num_epochs:
        read = preferences if config.reward_model.label_column is None else labeled_examples
        read(config, path, limit=limit)


def _reads_here(config: Config) -> bool:
    """Tell whether the run asks an environment of ours, and what it reads is on this machine."""
    files = [env_kwargs(config).get("path"), config.eval.kwargs.get("path")]
    is_ours = config.env.id.startswith(LLMGYM_PREFIX) and config.ppo.num_iterations > 0
    return is_ours and all(file is None or Path(file).exists() for file in files)


def _check_prompts(config: Config, made: Sequence[LLMVectorEnv]) -> None:
    if config.model.path is None:
        return  # its tokenizer is not trained yet
    try:
        chat = load_chat(config, load_tokenizer(config), env=config.env.id)
    except ConfigError:
        return  # lengths are guessed: the tokenizer is not on this machine
    for vector in made:
        check_prompts(config, chat, [vector])


def _dtype(config: Config, shapes: Shapes, *, is_gpu: bool) -> torch.dtype:
    if is_gpu and not torch.cuda.is_available() and config.model.dtype == "auto":
        return torch.bfloat16
    device = torch.device("cuda" if is_gpu else "cpu")
    return compute_dtype(config.model, device, shapes.num_policy)


def _pace(
    config: Config, shapes: Shapes, dtype: torch.dtype, lengths: Lengths, *, is_gpu: bool
) -> Pace:
    if is_gpu and not torch.cuda.is_available():
        return ASSUMED
    sizes = shapes.policy.config.get_text_config()
    width, device = sizes.hidden_size, torch.device("cuda" if is_gpu else "cpu")
    inner = getattr(sizes, "intermediate_size", None) or 4 * width
    batch, row = BatchShape.of(config, config.backend.ranks or 1), max(2, round(lengths.row(1)))
    rows = max(1, min(batch.micro_batch_tokens // row, batch.minibatch_rows))
    if is_gpu:
        pace = probed(width, inner, dtype=dtype, device=device)
        return tried(pace, width, inner, tokens=(rows, row), dtype=dtype, device=device)
    with one_thread() as threads:
        pace = probed(width, inner, dtype=dtype, device=device)
        pace = tried(pace, width, inner, tokens=(rows, row), dtype=dtype, device=device)
    return on_threads(pace, threads)


def _is_here(config: Config) -> bool:
    """Tell whether a run would be on this machine, as far as its settings say."""
    backend = config.backend
    return backend.gpus is None or (backend.nodes, backend.gpus) == (1, torch.cuda.device_count())


def _room(forecast: Forecast, ranks: int) -> int | None:
    """Return the bytes there are for a process, or None."""
    if forecast.holding.is_gpu:
        return torch.cuda.get_device_properties(0).total_memory
    available = available_memory()
    return None if available is None else available // ranks


def _free(folder: Path) -> int:
    """Return the bytes that are free where a folder is or will be."""
    there = next(
        parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists()
    )
    return shutil.disk_usage(there).free


def _control(config: Config) -> Forecast:
    """Forecast a numeric run; its networks are small enough to be built."""
    env_spec = spec(config.env.id)
    with constructing(config.env.id, "envs.0.kwargs"):
        (env,) = make_envs(partial(gymnasium.make, env_spec, **config.env.kwargs), 1)
    policy, value = build_control(
        env.observation_space,
        env.action_space,
        hidden_sizes=config.model.hidden_sizes,
        seed=config.run.seed,
        critic=config.ppo.critic,
    )
    env.close()
    parameters = {"policy": count_parameters(policy)}
    if value is not None:
        parameters["critic"] = count_parameters(value)
    return forecast_control(config, parameters, math.prod(env.observation_space.shape or (1,)))
