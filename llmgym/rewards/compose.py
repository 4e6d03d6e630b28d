"""Rewards made of several rewards: sums, gates, routes.

A composite keeps the figure of every part, unweighted, under its dotted name (`rm.helpful`), and
weighted under `NAME.weighted` where the weight is not 1. It is `per_turn` if a part is; the other
parts then abstain until the episode's end. A part that failed makes the sample invalid.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, final

from llmgym.errors import RewardError
from llmgym.messages import Sample, Score, Task
from llmgym.rewards.answers import check_answers
from llmgym.rewards.base import Reward, bounds_of, resolve, score_samples

RewardSpec = Reward | str
OnAbstain = Literal["skip", "zero"]
OnError = Literal["invalid", "raise"]
ABSTAIN = Score(0.0, status="abstain")


def is_due(reward: Reward, sample: Sample) -> bool:
    """Return whether a reward is asked about a sample: at the end, or after every turn."""
    return reward.per_turn or sample.terminated or sample.truncated


def score_due(reward: Reward, samples: Sequence[Sample]) -> list[Score]:
    """Score the samples that are due; the others abstain."""
    due = [i for i, sample in enumerate(samples) if is_due(reward, sample)]
    scores = dict(zip(due, score_samples(reward, [samples[i] for i in due]), strict=True))
    return [scores.get(i, ABSTAIN) for i in range(len(samples))]


def named_parts(name: str, score: Score) -> dict[str, float]:
    """Return a score's value as `name`, and its own parts below it."""
    return {name: score.value} | {f"{name}.{part}": value for part, value in score.parts.items()}


class Composite(Reward, ABC):
    """Scores with every part and combines what they say."""

    def __init__(
        self,
        *,
        on_abstain: OnAbstain = "skip",
        on_error: OnError = "invalid",
        **parts: RewardSpec,
    ) -> None:
        """Resolve the parts.

        Args:
            on_abstain: leave a part that abstains out ("skip"), or count it as 0.0 ("zero").
            on_error: one failed part makes the sample an error ("invalid"), or stops ("raise").
            parts: rewards, or names of rewards.

        Raises:
            RewardError: no parts, or a setting that does not exist.
        """
        if not parts:
            raise RewardError(f"{type(self).__name__} needs one part at least")
        if on_abstain not in ("skip", "zero") or on_error not in ("invalid", "raise"):
            raise RewardError(
                f'on_abstain is "skip" or "zero", on_error "invalid" or "raise"; '
                f"got {on_abstain!r} and {on_error!r}"
            )
        self.parts = {name: resolve(part) for name, part in parts.items()}
        self.name = type(self).__name__.lower()
        self.per_turn = any(part.per_turn for part in self.parts.values())
        self.collective = any(part.collective for part in self.parts.values())
        self._on_abstain, self._on_error = on_abstain, on_error

    @abstractmethod
    def combine(self, values: Mapping[str, float]) -> float:
        """Return the value of the parts that spoke, at least one."""

    def weight(self, name: str) -> float:
        """Return what a part's value is multiplied by."""
        del name
        return 1.0

    @final
    def inner(self) -> Mapping[str, Reward]:
        """Return the parts."""
        return self.parts

    @final
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score with each part in one call, then combine sample by sample."""
        columns = {name: score_due(part, samples) for name, part in self.parts.items()}
        rows = [{name: column[i] for name, column in columns.items()} for i in range(len(samples))]
        return [self._combined(row) for row in rows]

    def _combined(self, row: Mapping[str, Score]) -> Score:
        failed = [
            f"{name}: {score.error}" for name, score in row.items() if score.status == "error"
        ]
        retries = sum(score.retries for score in row.values())
        if failed and self._on_error == "raise":
            raise RewardError(f"a part of {self.name} failed. {failed[0]}")
        if failed:
            return Score(0.0, status="error", error=failed[0], retries=retries)
        spoke = {
            name: replace(score, status="ok")
            for name, score in row.items()
            if score.status == "ok" or self._on_abstain == "zero"
        }
        if not spoke:
            return replace(ABSTAIN, error=next(iter(row.values())).error)
        parts: dict[str, float] = {}
        for name, score in spoke.items():
            parts |= named_parts(name, score)
            if self.weight(name) != 1.0:
                parts[f"{name}.weighted"] = self.weight(name) * score.value
        value = self.combine({name: score.value for name, score in spoke.items()})
        return Score(value, parts, spans=self._spans(spoke), retries=retries)

    def _spans(self, spoke: Mapping[str, Score]) -> tuple[tuple[int, int, float], ...]:
        return tuple(
            (start, end, self.weight(name) * value)
            for name, score in spoke.items()
            for start, end, value in score.spans
        )


@final
class Sum(Composite):
    """The weighted sum: `Sum(answer=("math.boxed", 1.0), form=("think_format", 0.2))`."""

    def __init__(
        self,
        *,
        on_abstain: OnAbstain = "skip",
        on_error: OnError = "invalid",
        **parts: tuple[RewardSpec, float],
    ) -> None:
        """Take each part with its weight."""
        rewards = {name: part for name, (part, _) in parts.items()}
        super().__init__(on_abstain=on_abstain, on_error=on_error, **rewards)
        self._weights = {name: float(weight) for name, (_, weight) in parts.items()}

    @property
    def bounds(self) -> tuple[float, float]:
        """The weighted sum of the parts' own."""
        ends = [
            sorted(weight * bound for bound in bounds_of(self.parts[name]))
            for name, weight in self._weights.items()
            if weight
        ]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    def weight(self, name: str) -> float:
        """Return the part's weight."""
        return self._weights[name]

    def combine(self, values: Mapping[str, float]) -> float:
        """Return the weighted sum."""
        return sum(self._weights[name] * value for name, value in values.items())


@final
class Product(Composite):
    """The product of the parts: `Product(answer="exact", form="think_format")`."""

    def combine(self, values: Mapping[str, float]) -> float:
        """Return the product."""
        return math.prod(values.values())


@final
class Min(Composite):
    """The least of the parts: what all of them grant."""

    def combine(self, values: Mapping[str, float]) -> float:
        """Return the least value."""
        return min(values.values())


@final
class Max(Composite):
    """The greatest of the parts: what one of them grants."""

    def combine(self, values: Mapping[str, float]) -> float:
        """Return the greatest value."""
        return max(values.values())


@final
class Gate(Reward):
    """The reward `then` where `when` reaches a threshold, a floor elsewhere.

    `then` is not asked about what the gate stops. A gate that abstains or fails decides the sample.
    """

    def __init__(
        self, when: RewardSpec, then: RewardSpec, *, threshold: float = 1.0, floor: float = 0.0
    ) -> None:
        """Take both rewards, the value of `when` that opens the gate, and the value below it."""
        self.when, self.then = resolve(when), resolve(then)
        self.threshold, self.floor = threshold, floor
        self.name = "gate"
        self.per_turn = self.when.per_turn or self.then.per_turn
        if self.when.collective or self.then.collective:
            raise RewardError("Gate asks about some samples only, so no part may be collective")

    def inner(self) -> Mapping[str, Reward]:
        """Return the gate and the reward behind it."""
        return {"when": self.when, "then": self.then}

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Ask the gate about all samples, then the reward about those it lets through."""
        gates = score_due(self.when, samples)
        passed = [i for i, gate in enumerate(gates) if self._opens(gate)]
        worth = dict(zip(passed, score_due(self.then, [samples[i] for i in passed]), strict=True))
        return [self._scored(gate, worth.get(i)) for i, gate in enumerate(gates)]

    def _opens(self, gate: Score) -> bool:
        return gate.status == "ok" and gate.value >= self.threshold

    def _scored(self, gate: Score, worth: Score | None) -> Score:
        if gate.status != "ok":
            return gate
        parts = named_parts(self.when.name, gate)
        if worth is None:
            return Score(self.floor, parts, retries=gate.retries)
        worth = replace(worth, retries=gate.retries + worth.retries)
        if worth.status != "ok":
            return worth
        return replace(worth, parts=parts | named_parts(self.then.name, worth))


@final
class ByTask(Reward):
    """The reward of the sample's task: routed by `Task.source`, one call for each reward."""

    def __init__(
        self, rewards: Mapping[str, RewardSpec], default: RewardSpec | None = None
    ) -> None:
        """Take a reward for each source, and one for any other; without it those abstain."""
        self.rewards = {source: resolve(reward) for source, reward in rewards.items()}
        self.default = None if default is None else resolve(default)
        self.name = "by_task"
        every = [*self.rewards.values(), *([self.default] if self.default else [])]
        self.per_turn = any(reward.per_turn for reward in every)
        if any(reward.collective for reward in every):
            raise RewardError("ByTask asks about some samples only, so no part may be collective")

    def inner(self) -> Mapping[str, Reward]:
        """Return the rewards by their sources."""
        return self.rewards if self.default is None else {**self.rewards, "default": self.default}

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Check the answers of each source's tasks with its reward."""
        for source in dict.fromkeys(task.source for task in tasks):
            mine = [task for task in tasks if task.source == source]
            check_answers(self.rewards.get(source, self.default), mine)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score each source's samples with its reward."""
        scores = [ABSTAIN] * len(samples)
        sources = [sample.task.source for sample in samples]
        for source in dict.fromkeys(sources):
            reward = self.rewards.get(source, self.default)
            rows = [i for i, other in enumerate(sources) if other == source]
            if reward is not None:
                for i, score in zip(
                    rows, score_due(reward, [samples[i] for i in rows]), strict=True
                ):
                    scores[i] = score
        return scores
