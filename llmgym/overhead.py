"""What a step costs in a vector, and in a plain loop over the same environments."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, final

import gymnasium

from llmgym.episodes import JUNK
from llmgym.messages import Sample
from llmgym.registry import create_vector, settings_of, spec
from llmgym.rewards.base import Reward

RESPONSE = JUNK["prose"]
FEW = 64
"""Fewer slots than this are timed more often: a step of one takes less than a timer's noise."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds of one step of all slots, the median of several.

    Attributes:
        num_envs: slots.
        loop: a plain loop over environments, one step each.
        vector: `LLMVectorEnv`.
        sync: Gymnasium's `SyncVectorEnv`.
        reset: of all slots of `LLMVectorEnv`.
        scorer_calls: that one step of `LLMVectorEnv` made; 0 where the environment pays itself.
    """

    num_envs: int
    loop: float
    vector: float
    sync: float
    reset: float
    scorer_calls: int

    @property
    def ratio(self) -> float:
        """How much longer a step of the vector takes than the loop."""
        return self.vector / self.loop


@final
class _Counting(Reward):
    """Counts how often a reward is asked."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self.calls = reward, 0
        self.name, self.per_turn, self.collective = reward.name, reward.per_turn, False

    def score(self, samples: Sequence[Sample]) -> Sequence[Any]:
        """Ask the reward."""
        self.calls += 1
        return self.reward.score(samples)


def measure(
    id: str, num_envs: int, *, rounds: int = 5, kwargs: Mapping[str, Any] | None = None
) -> Overhead:
    """Time first steps of episodes, in turns: loop, vector, Gymnasium's vector.

    Args:
        id: of an environment of text.
        num_envs: slots.
        rounds: how often each is timed; the median counts. Few slots are timed more often.
        kwargs: of the environment.
    """
    settings = settings_of(spec(id), kwargs or {})
    singles = [_make(id, kwargs) for _ in range(num_envs)]
    vector: Any = create_vector(**settings, num_envs=num_envs)
    sync = gymnasium.vector.SyncVectorEnv([lambda: _make(id, kwargs)] * num_envs)
    seconds: dict[str, list[float]] = {"loop": [], "vector": [], "sync": [], "reset": []}
    actions = [RESPONSE] * num_envs
    times = rounds * max(1, FEW // num_envs)
    with _no_collections():
        for number in range(times + 1):  # the first round loads what is loaded once
            for slot, env in enumerate(singles):
                env.reset(seed=number + slot)
            sync.reset(seed=number)
            took = {
                "loop": _timed(lambda: [env.step(RESPONSE) for env in singles]),
                "reset": _timed(lambda: vector.reset(seed=number)),  # noqa: B023 - called at once
                "vector": _timed(lambda: vector.step(actions)),
                "sync": _timed(lambda: sync.step(tuple(actions))),
            }
            for name, value in took.items():
                seconds[name] += [value] if number else []
    medians = {name: median(values) for name, values in seconds.items()}
    return Overhead(num_envs=num_envs, scorer_calls=_scorer_calls(vector, actions), **medians)


def _make(id: str, kwargs: Mapping[str, Any] | None) -> gymnasium.Env:
    return gymnasium.make(spec(id), disable_env_checker=True, **(kwargs or {})).unwrapped


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep the garbage collector out of what is timed."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _scorer_calls(vector: Any, actions: Sequence[str]) -> int:  # noqa: ANN401 - an LLMVectorEnv
    env = vector.scoring_envs()[0].unwrapped
    if env.reward is None:
        return 0
    counting = _Counting(env.reward)
    env._reward = counting
    vector.reset(seed=0)
    vector.step(actions)
    env._reward = counting.reward
    return counting.calls
