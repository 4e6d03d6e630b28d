"""Scores brought to mean 0 and deviation 1, and rewards that remember what that takes.

Statistics stand still while a rollout is scored, so a sample's score does not depend on its batch.
Whoever collects the rollout calls `observed` on every rank, adds the sums up, and hands them to
`absorb`; what evaluation showed is dropped by calling `observed` before.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol, final, runtime_checkable

import numpy as np

from llmgym.errors import RewardError
from llmgym.rewards.base import Reward

Normalize = Literal["none", "fixed", "running"]
Sums = tuple[float, float, float]
"""How many scores, their sum, the sum of their squares."""
MIN_STD = 1e-8


@final
class Scale:
    """Shifts and scales scores.

    Args:
        mode: "none"; "fixed", by `mean` and `std`; "running", by those of all earlier rollouts.
        mean: what becomes 0 in the mode "fixed".
        std: what becomes 1 in the mode "fixed".

    Raises:
        RewardError: no such mode, "fixed" without both figures, or figures without "fixed".
    """

    def __init__(
        self, mode: Normalize = "none", mean: float | None = None, std: float | None = None
    ) -> None:
        if mode not in ("none", "fixed", "running"):
            raise RewardError(f'normalize is "none", "fixed" or "running"; got {mode!r}')
        is_given = mean is not None and std is not None and std > 0
        if (mode == "fixed") != is_given or (mode != "fixed" and (mean, std) != (None, None)):
            raise RewardError(
                f"mean and std, above 0, belong to normalize fixed; got normalize {mode} with "
                f"mean {mean} and std {std}"
            )
        self.mode = mode
        self._fixed = (mean or 0.0, std or 1.0)
        self._totals = np.zeros(3)
        self._pending = np.zeros(3)

    @property
    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation in use; 0 and 1 before the first rollout."""
        count, total, squares = self._totals
        if self.mode != "running" or count < 2:
            return self._fixed
        mean = total / count
        return float(mean), float(np.sqrt(max(squares / count - mean**2, 0.0)))

    def apply(self, scores: Sequence[float]) -> list[float]:
        """Return the scores normalized, and take note of those that are finite."""
        values = np.asarray(scores, np.float64)
        seen = values[np.isfinite(values)]
        self._pending += (len(seen), seen.sum(), (seen**2).sum())
        mean, std = self.statistics
        return [float(score) for score in (values - mean) / (std if std > MIN_STD else 1.0)]

    def observed(self) -> Sums:
        """Return the sums over the scores since the last call."""
        count, total, squares = self._pending
        self._pending = np.zeros(3)
        return float(count), float(total), float(squares)

    def absorb(self, sums: Sums) -> None:
        """Add sums to the totals."""
        self._totals += sums

    def state_dict(self) -> dict[str, float]:
        """Return the totals."""
        names = ("count", "sum", "squares")
        return {name: float(value) for name, value in zip(names, self._totals, strict=True)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the totals."""
        self._totals = np.array([state["count"], state["sum"], state["squares"]])
        self._pending = np.zeros(3)


@runtime_checkable
class Scaled(Protocol):
    """A reward that normalizes its scores."""

    scale: Scale


@runtime_checkable
class Composed(Protocol):
    """A reward made of other rewards."""

    def inner(self) -> Mapping[str, Reward]:
        """Return the rewards it is made of, by the names of its parts."""
        ...


def walked(reward: Reward | None, name: str = "") -> Iterator[tuple[str, Reward]]:
    """Yield a reward and all that it is made of, each with its dotted name."""
    if reward is None:
        return
    yield name or reward.name, reward
    if isinstance(reward, Composed):
        for part, inner in reward.inner().items():
            yield from walked(inner, f"{name}.{part}" if name else part)


def running_scales(reward: Reward | None) -> dict[str, Scale]:
    """Return, by dotted name, the running statistics of a reward and of all that it is made of."""
    return {
        name: inner.scale
        for name, inner in walked(reward)
        if isinstance(inner, Scaled) and inner.scale.mode == "running"
    }
