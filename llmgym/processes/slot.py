"""A slot of a vector whose environment plays in a process of its own, and is scored here."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, final

import gymnasium
import numpy as np

from llmgym.env import LLMEnv, LLMWrapper, Observation, core_env
from llmgym.errors import RewardError
from llmgym.executors import Outcome
from llmgym.limits import CallLimit
from llmgym.messages import Sample
from llmgym.processes.client import EnvClient
from llmgym.processes.env_worker import generator_of
from llmgym.processes.recipe import Recipe, recipe_of
from llmgym.processes.running import close_process, run_processes, value_of
from llmgym.rewards.base import Reward, bounds_of
from llmgym.rewards.verdict import Verdict

logger = logging.getLogger("llmgym.processes")

ENDED = ("EnvProcessError", "EnvTimeoutError")
"""What outcomes of processes that are gone are called."""


@final
class ScoredElsewhere(Reward):
    """Replaces a reward in a process that does not score, so that it is not loaded there."""

    def __init__(self, name: str, *, per_turn: bool, bounds: tuple[float, float]) -> None:
        self.name, self.per_turn, self._bounds = name, per_turn, bounds

    @property
    def bounds(self) -> tuple[float, float]:
        """Those of the reward."""
        return self._bounds

    def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Refuse to.

        Raises:
            RewardError: always.
        """
        raise RewardError(
            f"{self.name} scores where the run trains, and an environment in a process asked it. "
            "Let the environment pay by Reply.reward, or set executor inline"
        )


@final
class ProcessSlot(LLMWrapper):
    """An environment of text whose episodes are played in another process.

    What is wrapped has no episodes: its tasks and its reward are used, which score the samples of
    all slots in one call. What it remembers of them stays here.

    Args:
        make: what builds the environment, here and there.
        limit: of the time of a call.
        memory_gb: of the process's data, in GiB; None for no limit.
        name: of the slot in messages.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        limit: CallLimit,
        memory_gb: float | None = None,
        name: str = "the slot",
    ) -> None:
        super().__init__(make())
        self.client = EnvClient(_recipe(make, core_env(self)), memory_gb, name)
        self._limit = limit

    @property
    def np_random(self) -> np.random.Generator:
        """The generator as the process has it, or as the next one will."""
        if self.client.rng is None:
            return self.env.np_random
        return generator_of(deepcopy(self.client.rng))

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        """Set the generator of the next process."""
        self.client.rng = value.bit_generator.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Raises:
            EnvTimeoutError: it takes too long.
            EnvProcessError: the process ends, or the environment raises an error.
        """
        outcome = self._asked("begin", seed, dict(options or {}))
        return self.begun(value_of(outcome, f"reset of {self.client.name}"))

    def begun(self, value: tuple[Any, ...]) -> tuple[Observation, dict[str, Any]]:
        """Take what a process returned for "begin", and return observation and info."""
        observation, info, task = value
        core_env(self)._task = task
        return observation, info

    def advance(self, action: str) -> tuple[Observation, bool, bool, Sample]:
        """Play one response without scoring it.

        Raises:
            EnvTimeoutError: it takes too long.
            EnvProcessError: the process ends, or the environment raises an error.
        """
        return value_of(self._asked("advance", action), f"step of {self.client.name}")

    def solve(self) -> str | None:
        """Return a perfect response from here, or None where none is known."""
        return value_of(self._asked("solve"), f"solve() of {self.client.name}")

    def render(self) -> Any:  # noqa: ANN401 - as of Gymnasium
        """Return what the environment renders."""
        return value_of(self._asked("render"), f"render() of {self.client.name}")

    def close(self) -> None:
        """End the process; what it plays is closed with it."""
        close_process(self.client)
        super().close()

    def _asked(self, name: str, *arguments: Any) -> Outcome:
        return run_processes({0: (self.client, (name, arguments))}, limit=self._limit)[0]


def _recipe(make: Callable[[], gymnasium.Env], core: LLMEnv) -> Recipe:
    """Return what another process builds: the environment, its reward left out."""
    keywords = make.keywords if isinstance(make, partial) else {}
    reward = core.reward if keywords.get("reward") is not None else None
    if reward is None:
        return recipe_of(make)
    stand_in = ScoredElsewhere(reward.name, per_turn=reward.per_turn, bounds=bounds_of(reward))
    return recipe_of(make, {"reward": stand_in})


def begin_all(
    slots: Mapping[int, ProcessSlot],
    seeds: Mapping[int, int | None],
    options: Mapping[int, dict[str, Any]],
    *,
    limit: CallLimit,
    workers: int | None,
) -> dict[int, Observation]:
    """Begin an episode in each slot, all at the same time; return the observations.

    A process that ends or is late is made anew and asked once more.

    Raises:
        EnvTimeoutError: the second one is late as well.
        EnvProcessError: the second one ends as well, or an environment raises an error.
    """

    def ask(which: Iterable[int]) -> dict[int, Outcome]:
        requests = {
            slot: (slots[slot].client, ("begin", (seeds[slot], options[slot]))) for slot in which
        }
        return run_processes(requests, limit=limit, workers=workers)

    outcomes = ask(slots)
    again = [slot for slot, outcome in outcomes.items() if outcome.raised in ENDED]
    for slot in again:
        logger.warning("%s: %s; once more", slots[slot].client.name, outcomes[slot].error)
    outcomes |= ask(again)
    observations: dict[int, Observation] = {}
    for slot, outcome in outcomes.items():
        value = value_of(outcome, f"reset of {slots[slot].client.name}")
        observations[slot] = slots[slot].begun(value)[0]
    return observations
