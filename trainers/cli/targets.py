"""What RUN|MODEL on the command line means: settings, a model, and what reads its text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import gymnasium
import torch
from torch import Tensor

from llmgym.registry import spec
from trainers.batch import Evaluation
from trainers.collect.control import make_envs
from trainers.config import Config, TokenizerConfig
from trainers.config_files import read
from trainers.distributed import World
from trainers.errors import ConfigError
from trainers.evaluate import evaluate_control, evaluate_text
from trainers.export import load_mlp
from trainers.generation.base import Generator, Request, Response, Sampling
from trainers.generation.transformers import TransformersGenerator
from trainers.models.causal_lm import CausalPolicy
from trainers.models.chat import ChatFormat
from trainers.models.loading import (
    load_chat,
    load_policy_model,
    load_tokenizer,
    longest_sequence,
)
from trainers.runner.assemble import Devices, reward_of, text_envs

RUNS = Path("runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model and the settings it is looked at with.

    Attributes:
        name: as it is shown.
        model: a Hugging Face folder or hub id; of a control run, the folder of its MLP.
        config: of its run, or the default's.
        run_dir: its run folder, or None.
        tokenizer: settings that replace the model's own; what a run has written has its own.
    """

    name: str
    model: str
    config: Config
    run_dir: Path | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


def newest_run(folder: Path = RUNS) -> Path:
    """Return the run folder that was started last.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise ConfigError(f"there is no run in {folder}/. Start one: llmgym train quickstart")
    return found[-1].parent


def _answering(target: Target) -> Target:
    """Refuse a reward model, whose folder would load as a language model with a random head."""
    if target.config.reward_model.num_epochs:
        raise ConfigError(
            f"{target.name} is a reward model: it judges and does not answer. Its figures are in "
            f"{target.model}/README.md, and that folder is a plain Hugging Face one already."
        )
    return target


def target_of(word: str | None, which: str = "model") -> Target:
    """Return what a run folder, a model folder inside or outside of one, or a hub id names.

    Args:
        word: what was typed; None is the newest run.
        which: the folder of a run that is meant: model, best or base.

    Raises:
        ConfigError: the run has no such model yet, it is a reward model, or the settings do not
            load.
    """
    path = newest_run() if word is None else Path(word)
    if (path / "config.yaml").is_file():
        config = read([path / "config.yaml"])
        if not (path / which).is_dir():
            if which == "base" and config.model.path is not None:
                return Target(
                    name="base",
                    model=config.model.path,
                    config=config,
                    run_dir=path,
                    tokenizer=config.tokenizer,
                )
            raise ConfigError(
                f"{path} has no {which}/ yet. Continue it: "
                f"llmgym train -c {path}/config.yaml --resume"
            )
        name = f"{path}/{which}"
        return _answering(Target(name=name, model=name, config=config, run_dir=path))
    inside = path.parent / "config.yaml"
    if path.is_dir() and inside.is_file():
        found = read([inside])
        return _answering(
            Target(name=str(path), model=str(path), config=found, run_dir=path.parent)
        )
    looks_local = word is not None and word.startswith((".", "/", "runs/"))
    if looks_local and not path.is_dir():
        raise ConfigError(f"{path} is neither a run folder nor a model folder.")
    return Target(name=str(word), model=str(word), config=Config())


@final
class Drawn(Generator):
    """A generator that draws as it was told to, whatever its caller asks for."""

    def __init__(self, inner: Generator, sampling: Sampling) -> None:
        self.exact = inner.exact
        self._inner, self._sampling = inner, sampling

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._inner.policy_version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Write one response to each request."""
        return self._inner.generate(requests, self._sampling)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take weights."""
        self._inner.load_weights(weights, version)

    def sleep(self) -> None:
        """Give back memory."""
        self._inner.sleep()

    def wake(self) -> None:
        """Undo `sleep`."""
        self._inner.wake()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A loaded model that answers.

    Attributes:
        config: the target's, naming its model.
        longest: tokens the model takes.
    """

    config: Config
    policy: CausalPolicy
    chat: ChatFormat
    generator: Generator
    longest: int


def load_speaker(target: Target, sampling: Sampling) -> Speaker:
    """Load a target's model and tokenizer; no critic.

    Raises:
        ConfigError: the folder lacks a tokenizer, a template, or is no model.
    """
    own = target.config.model
    config = replace(
        target.config, model=replace(own, path=target.model), tokenizer=target.tokenizer
    )
    chat = load_chat(config, load_tokenizer(config), env=config.envs[0].id)
    model = load_policy_model(config, chat, needs_room=False)
    policy = CausalPolicy(
        model, temperature=config.generation.temperature, chunk=config.backend.logprob_chunk
    )
    policy.to(World().device).eval()
    generator = TransformersGenerator(
        policy,
        eos_token_ids=chat.eos_token_ids,
        pad_token_id=chat.pad_token_id,
        batch_size=config.generation.batch_size,
        autocast=Devices.of(config, World(), policy).autocast,
    )
    return Speaker(
        config=config,
        policy=policy,
        chat=chat,
        generator=Drawn(generator, sampling),
        longest=longest_sequence(model.config),
    )


def held_out_score(target: Target, sampling: Sampling) -> Evaluation:
    """Score a target on held-out tasks, or a control policy on held-out episodes."""
    config = target.config
    if config.is_control:
        found, kwargs = spec(config.envs[0].id), config.envs[0].kwargs
        return evaluate_control(
            load_mlp(Path(target.model)),
            lambda: make_envs(lambda: gymnasium.make(found, **kwargs), 1)[0],
            env=config.envs[0].id,
            num_episodes=config.eval.num_tasks,
            seed=config.run.seed + 1,
            world=World(),
        )
    speaker = load_speaker(target, sampling)
    envs = text_envs(
        config,
        min(config.eval.num_tasks, config.generation.batch_size),
        env=None,
        reward=reward_of(config, None),
        held_out=True,
    )
    try:
        with torch.no_grad():
            return evaluate_text(
                envs,
                speaker.generator,
                chat=speaker.chat,
                config=config,
                world=World(),
                max_tokens=speaker.longest,
            )
    finally:
        envs.close()
