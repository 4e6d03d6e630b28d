"""Play one episode in every slot: generate, step, record responses; no learning, no shaping.

Shared by the text collector and by evaluation. Ranks go in lockstep: each generates and steps
equally often, and a failure on one is raised on all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llmgym.errors import RewardError, TaskSourceError
from llmgym.messages import Completion
from llmgym.vector import LLMVectorEnv
from trainers.collect.episodes import Episodes
from trainers.collect.ledger import Limits, TokenLedger
from trainers.collect.metrics import Phases
from trainers.config import Config
from trainers.distributed.collectives import World, gather, global_max, global_sum
from trainers.errors import GenerationError, RolloutStoppedError
from trainers.generation.base import Generator, Request, Response, Sampling
from trainers.models.chat import ChatFormat


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """Which tasks are played.

    Attributes:
        indices: task numbers, one for each group of slots.
        index: sequence index of each slot, counted over all ranks.
        group_size: neighbouring slots that play the same task.
        world: this process among its peers.
        max_tokens: longest sequence the model takes, or None.
        is_stopping: tells whether to give up, asked after each turn's responses; None: never.
    """

    indices: Sequence[int]
    index: Sequence[int]
    world: World
    group_size: int = 1
    max_tokens: int | None = None
    is_stopping: Callable[[], bool] | None = None


def play(
    envs: LLMVectorEnv,
    generator: Generator,
    *,
    chat: ChatFormat,
    config: Config,
    sampling: Sampling,
    options: PlayOptions,
) -> Episodes:
    """Play one episode in every slot, to its end; a collective.

    What an environment draws is fixed by seed and iteration of `sampling` and its slot's group.

    Raises:
        TaskSourceError: on every rank, when a prompt is too long and `data.too_long` is raise.
        RewardError: on every rank, when a reward function is broken on one.
        GenerationError: a response was written by other weights than the generator's.
        RolloutStoppedError: on every rank, where one is stopping.
    """
    reset = {"indices": list(options.indices), "group_size": options.group_size}
    observations, _ = envs.reset(seed=_seeds(sampling, options), options=reset)
    limits = Limits(
        max_prompt_tokens=config.generation.max_prompt_tokens,
        max_new_tokens=config.generation.max_new_tokens,
        max_tokens=options.max_tokens,
    )
    opening = [messages for messages in observations if messages is not None]
    ledger = TokenLedger(chat, opening, index=options.index, limits=limits)
    if config.data.too_long == "raise":
        _check_prompts(ledger, limits)
    idle = Request(token_ids=[chat.pad_token_id], index=0, max_new_tokens=1)
    phases = Phases()
    while _anywhere(ledger.any_live(), options.world):
        requests = ledger.requests()
        responses = generator.generate(requests or [idle], sampling)
        _check_stopping(options)
        _check_versions(responses, generator.policy_version)
        actions = ledger.commit(responses if requests else [])
        with phases.of("score"):
            step = _step_together(envs, actions)
        ledger.observe(*step)
    return replace(ledger.finish(), score_seconds=phases.seconds.get("score", 0.0))


def _seeds(sampling: Sampling, options: PlayOptions) -> list[int]:
    """Return the seed of each slot's environment: equal in a group, the same at any rank count."""
    groups = [index // options.group_size for index in options.index]
    drawn = {
        group: int(np.random.SeedSequence((sampling.seed, sampling.iteration, group))
                   .generate_state(1)[0])
        for group in set(groups)
    }  # fmt: skip
    return [drawn[group] for group in groups]


def _check_prompts(ledger: TokenLedger, limits: Limits) -> None:
    mine = ledger.too_long
    long, slots = global_sum(torch.tensor([len(mine), len(ledger.slots)])).tolist()
    longest = int(global_max(torch.tensor(max(mine, default=0))))
    if long:
        raise TaskSourceError(
            f"{math.ceil(100 * long / slots)} % of prompts are longer than "
            f"generation.max_prompt_tokens {limits.max_prompt_tokens} (longest {longest}).\n"
            "Raise it, or drop them: --data.too-long drop"
        )


def _check_stopping(options: PlayOptions) -> None:
    if options.is_stopping is not None and _anywhere(options.is_stopping(), options.world):
        raise RolloutStoppedError("the run ends, and this rollout is not needed")


def _check_versions(responses: Sequence[Response], version: int) -> None:
    others = sorted({response.policy_version for response in responses} - {version})
    if others:
        raise GenerationError(
            f"a response was written by policy version {others[0]}, the weights in use are "
            f"version {version}: stale text is never trained on.\nContinue from the last "
            "checkpoint: --resume"
        )


def _step_together(envs: LLMVectorEnv, actions: Sequence[Completion | None]) -> tuple[Any, ...]:
    """Step; where a reward is broken on one rank, raise on all of them."""
    step, failure = None, None
    try:
        step = envs.step(actions)
    except RewardError as error:
        failure = error
    texts = [text for text in gather(None if failure is None else str(failure)) if text]
    if texts:
        raise RewardError(texts[0]) from failure
    assert step is not None
    return step


def _anywhere(flag: bool, world: World) -> bool:
    return flag if world.size == 1 else bool(global_max(torch.tensor(int(flag))))
