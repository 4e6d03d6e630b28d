"""Several environments in one batch: how many prompts each gets, which ones, and what comes next.

The share of a batch is exact: it is the same for every batch, as near to the weights as whole
prompts allow (largest remainder). The environments are spread over the batch, so that any part of
it, such as that of a rank, holds nearly its share of each.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, final

from llmgym.data.curriculum import LevelSampler
from llmgym.data.tasks import TaskSampler
from llmgym.errors import TaskSourceError


def quotas(weights: Sequence[float], count: int) -> list[int]:
    """Return how many of `count` prompts each environment gets: by largest remainder, exactly all.

    Raises:
        TaskSourceError: a weight is not above 0, or an environment would get none.
    """
    if not weights or not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise TaskSourceError(f"weights of a mixture must be above 0, got {list(weights)}")
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) * count / total for weight in weights]
    shares = [math.floor(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in order[: count - sum(shares)]:
        shares[i] += 1
    if not all(shares):
        raise TaskSourceError(
            f"of {count} prompts per batch, environment {shares.index(0)} of the mixture would get "
            f"none (weights {list(weights)}). Raise its weight, or the number of prompts"
        )
    return shares


def spread(shares: Sequence[int]) -> list[int]:
    """Return the environment of each prompt of a batch; each is spread evenly over it.

    Args:
        shares: prompts of each environment.
    """
    # Prompt k of an environment with n prompts belongs at (k + 1/2) / n of the batch.
    places = [
        (Fraction(2 * k + 1, 2 * share), env)
        for env, share in enumerate(shares)
        for k in range(share)
    ]
    return [env for _, env in sorted(places)]


@final
class MixtureSampler:
    """Deals out task numbers of several environments, each task of one once per epoch of its own.

    Every environment has a sampler with a position of its own, counted over all ranks. The tasks of
    a batch are the same at any number of ranks, and none is skipped or repeated over a resume.

    Args:
        samplers: of each environment, by name, for all ranks together.
        envs: the environment of each prompt of a batch, over all ranks; from `spread`.
        rank: of this process, in [0, world_size).
        world_size: how many processes share a batch evenly.
    """

    def __init__(
        self,
        samplers: Mapping[str, TaskSampler | LevelSampler],
        envs: Sequence[int],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._samplers = dict(samplers)
        self._envs = list(envs)
        self._rank, self._world_size = rank, world_size

    def next(self, n: int) -> list[int]:
        """Return the task numbers of this rank's `n` prompts of the next batch, in their order.

        Raises:
            TaskSourceError: all ranks together take another number than a batch has.
        """
        if n * self._world_size != len(self._envs):
            raise TaskSourceError(
                f"a batch of the mixture has {len(self._envs)} prompts, and {self._world_size} "
                f"ranks took {n} each"
            )
        dealt = [
            sampler.next(self._envs.count(env))
            for env, sampler in enumerate(self._samplers.values())
        ]
        upcoming = [iter(numbers) for numbers in dealt]
        batch = [next(upcoming[env]) for env in self._envs]
        return batch[self._rank * n : (self._rank + 1) * n]

    def levels(self) -> dict[str, int]:
        """Return the current level of each environment with a curriculum, by name."""
        return {
            name: sampler.level
            for name, sampler in self._samplers.items()
            if isinstance(sampler, LevelSampler)
        }

    def learn(self, earned: Mapping[str, tuple[float, int]]) -> None:
        """Tell curricula what the episodes of a batch earned, over all ranks.

        Args:
            earned: by name, as `LevelSampler.learn` takes it.
        """
        for name, sampler in self._samplers.items():
            if isinstance(sampler, LevelSampler) and name in earned:
                sampler.learn(*earned[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the position in each environment's tasks, by name."""
        return {"envs": {name: sampler.state_dict() for name, sampler in self._samplers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, at this or another number of ranks or other weights.

        Raises:
            TaskSourceError: the state is of other environments, tasks or another seed.
        """
        saved = state.get("envs")
        if saved is None or list(saved) != list(self._samplers):
            names = "one environment" if saved is None else ", ".join(saved)
            raise TaskSourceError(
                f"the checkpoint's tasks are of {names}, this run's of {', '.join(self._samplers)}."
                "\nResume with the same environments, or start a new run."
            )
        for name, sampler in self._samplers.items():
            sampler.load_state_dict(saved[name])
