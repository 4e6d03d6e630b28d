"""Rewards that make responses shorter without making them worse; they override `score_batch`.

A wrong response is never paid for being short: a policy that fails would else learn to end at once.
Lengths are sampled tokens of the scored response; what a template or an environment wrote is not
counted.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from math import inf
from typing import Any, Literal, final

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from llmgym.env import LLMWrapper
from llmgym.errors import EnvContractError, RewardError
from llmgym.messages import Sample, Score
from llmgym.wrappers.reward import Unit, checked_unit, response_length

LengthMode = Literal["lazy", "exact", "max", "group", "latency", "constrained"]
LEAST_OF_A_GROUP = 4
"""Responses to one prompt that the mode "group" needs to compare lengths."""
MAX_MULTIPLIER = 100.0


@dataclass(frozen=True, slots=True)
class Judged:
    """A scored response, as the modes see it.

    Attributes:
        value: the reward r.
        length: the tokens n.
        group: responses to one prompt share it.
    """

    value: float
    length: int
    is_correct: bool
    group: int


class LengthRule(ABC):
    """How a mode changes rewards. Its fields are its settings, all of them from 0 on."""

    @abstractmethod
    def rewards(self, judged: Sequence[Judged]) -> list[float]:
        """Return the new rewards of a batch."""

    def bounds(self, low: float, high: float) -> tuple[float, float]:
        """Return the least and the most that a response earns, of those before."""
        del low
        return -inf, high

    def learn(self, accuracy: float) -> None:  # noqa: B027 - most modes remember nothing
        """Take the accuracy of a batch into account for the next one."""

    def state(self) -> dict[str, float]:
        """Return what the rule remembers."""
        return {}


@final
@dataclass(slots=True)
class Lazy(LengthRule):
    """r - alpha max(0, n - shortest - band) of correct responses, while accuracy does not fall.

    `shortest` is the length of the shortest correct response to the prompt. Where a batch's
    accuracy is more than `tolerance` below the running one (an average that keeps the share
    `decay`), all rewards are left as they are. Source: arXiv:2505.12284.
    """

    alpha: float = 0.001
    band: int = 0
    tolerance: float = 0.05
    decay: float = 0.9
    accuracy: float = field(default=-inf, init=False)

    def rewards(self, judged: Sequence[Judged]) -> list[float]:
        """Return the new rewards of a batch."""
        if _accuracy(judged) < self.accuracy - self.tolerance:
            return [row.value for row in judged]
        shortest = {
            group: min((row.length for row in rows if row.is_correct), default=0)
            for group, rows in _grouped(judged).items()
        }
        return [
            row.value - self.alpha * max(0, row.length - shortest[row.group] - self.band)
            if row.is_correct
            else row.value
            for row in judged
        ]

    def learn(self, accuracy: float) -> None:
        """Move the running accuracy."""
        before = accuracy if self.accuracy == -inf else self.accuracy
        self.accuracy = self.decay * before + (1 - self.decay) * accuracy

    def state(self) -> dict[str, float]:
        """Return the running accuracy."""
        return {"accuracy": self.accuracy}


@final
@dataclass(slots=True)
class Exact(LengthRule):
    """r - alpha |target - n|. Source: arXiv:2503.04697."""

    target: int
    alpha: float = 0.001

    def rewards(self, judged: Sequence[Judged]) -> list[float]:
        """Return the new rewards of a batch."""
        return [row.value - self.alpha * abs(self.target - row.length) for row in judged]


@final
@dataclass(slots=True)
class Max(LengthRule):
    """r clip(1/2 + alpha (target - n), 0, 1). Source: arXiv:2503.04697."""

    target: int
    alpha: float = 0.001

    def rewards(self, judged: Sequence[Judged]) -> list[float]:
        """Return the new rewards of a batch."""
        shares = (0.5 + self.alpha * (self.target - row.length) for row in judged)
        return [row.value * min(1.0, max(0.0, s)) for row, s in zip(judged, shares, strict=True)]

    def bounds(self, low: float, high: float) -> tuple[float, float]:
        """Return the bounds, 0 among them."""
        return min(low, 0.0), max(high, 0.0)


@final
@dataclass(slots=True)
class Group(LengthRule):
    """r + alpha l with l = 1/2 - (n - min)/(max - min) over the responses to a prompt.

    A wrong response gets min(0, l); nobody gets anything where no response to the prompt is
    correct, or all have one length. Source: arXiv:2501.12599, which knows no first exception.
    """

    alpha: float = 0.5

    def rewards(self, judged: Sequence[Judged]) -> list[float]:
        """Return the new rewards of a batch.

        Raises:
            RewardError: a prompt has fewer than 4 responses.
        """
        groups = _grouped(judged)
        small = next((g for g, rows in groups.items() if len(rows) < LEAST_OF_A_GROUP), None)
        if small is not None:
            raise RewardError(
                f"LengthReward in mode group compares {LEAST_OF_A_GROUP} responses to a prompt or "
                f"more, and group {small} came with {len(groups[small])}. Set "
                f"ppo.samples_per_prompt to {LEAST_OF_A_GROUP} or more"
            )
        return [row.value + self.alpha * _rank(row, groups[row.group]) for row in judged]

    def bounds(self, low: float, high: float) -> tuple[float, float]:
        """Return the bounds, half of alpha further apart on each side."""
        return low - self.alpha / 2, high + self.alpha / 2


@final
@dataclass(slots=True)
class Latency(LengthRule):
    """r - alpha (ttft + n tpot) / slo of correct responses; the times are in milliseconds.

    ttft: to the first token; tpot: per token; slo: what a response may take.
    """

    tpot: float
    slo: float
    ttft: float = 0.0
    alpha: float = 0.5

    def rewards(self, judged: Sequence[Judged]) -> list[float]:
        """Return the new rewards of a batch."""
        return [
            row.value - self.alpha * (self.ttft + row.length * self.tpot) / self.slo
            if row.is_correct
            else row.value
            for row in judged
        ]


@final
@dataclass(slots=True)
class Constrained(LengthRule):
    """(lambda r - c) / (1 + lambda): shortest responses whose accuracy is `floor` or more.

        c       = min(1, n/scale), and 1 for a wrong response
        lambda <- clip(lambda + rate (floor - accuracy), 0, 100) after each batch, from 1 on

    lambda is the multiplier of the constraint on accuracy (dual ascent).
    """

    floor: float
    scale: int
    rate: float = 1.0
    multiplier: float = field(default=1.0, init=False)

    def rewards(self, judged: Sequence[Judged]) -> list[float]:
        """Return the new rewards of a batch."""
        costs = [min(1.0, row.length / self.scale) if row.is_correct else 1.0 for row in judged]
        return [
            (self.multiplier * row.value - cost) / (1.0 + self.multiplier)
            for row, cost in zip(judged, costs, strict=True)
        ]

    def bounds(self, low: float, high: float) -> tuple[float, float]:
        """Return what any multiplier can give."""
        return min(low, -1.0), max(high, 0.0)

    def learn(self, accuracy: float) -> None:
        """Move the multiplier."""
        moved = self.multiplier + self.rate * (self.floor - accuracy)
        self.multiplier = min(MAX_MULTIPLIER, max(0.0, moved))

    def state(self) -> dict[str, float]:
        """Return the multiplier."""
        return {"multiplier": self.multiplier}


RULES: Mapping[LengthMode, type[LengthRule]] = {
    "lazy": Lazy,
    "exact": Exact,
    "max": Max,
    "group": Group,
    "latency": Latency,
    "constrained": Constrained,
}


@final
class LengthReward(LLMWrapper, RecordConstructorArgs):
    """Change the reward of a response by its length, in one of the modes of `RULES`.

    Parts of the score say the reward before (`task_reward`) and what the mode remembers. Scores
    that failed or abstain are kept. "lazy" and "constrained" remember the accuracy of what they
    scored, so the same samples may be scored otherwise later; checkpoints hold that.

    Args:
        env: what is wrapped.
        mode: which rule.
        correct: least reward of a correct response.
        unit: "tokens" (a plain `str` has none), or "characters".
        **settings: the fields of the mode's rule.

    Raises:
        EnvContractError: there is no such mode, or it has not these settings.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        mode: LengthMode = "lazy",
        *,
        correct: float = 1.0,
        unit: Unit = "tokens",
        **settings: float,
    ) -> None:
        recorded: dict[str, Any] = {"mode": mode, "correct": correct, "unit": unit, **settings}
        RecordConstructorArgs.__init__(self, **recorded)
        super().__init__(env)
        self.rule = _rule(mode, settings)
        self.correct = correct
        self.unit: Unit = checked_unit(unit)

    @property
    def reward_bounds(self) -> tuple[float, float]:
        """The bounds below, moved as far as the mode can move them."""
        return self.rule.bounds(*self.inner.reward_bounds)

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Score samples of any slots, then change each score by the length of its response.

        Raises:
            RewardError: the mode is "group", and a prompt has fewer than 4 responses.
        """
        scores = self.inner.score_batch(samples)
        rows = [i for i, score in enumerate(scores) if score.status == "ok"]
        judged = [self._judged(samples[i], scores[i]) for i in rows]
        figures = {f"length_{name}": value for name, value in self.rule.state().items()
                   if value > -inf}  # fmt: skip
        for i, before, value in zip(rows, judged, self.rule.rewards(judged), strict=True):
            parts = {**scores[i].parts, "task_reward": before.value, **figures}
            scores[i] = replace(scores[i], value=value, parts=parts)
        if judged:
            self.rule.learn(_accuracy(judged))
        return scores

    def state_dict(self) -> dict[str, float]:
        """Return what the mode remembers of what it scored."""
        return self.rule.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in state.items():
            setattr(self.rule, name, value)

    def _judged(self, sample: Sample, score: Score) -> Judged:
        length = response_length(sample, self.unit)
        return Judged(score.value, length, score.value >= self.correct, sample.group)


def _accuracy(judged: Sequence[Judged]) -> float:
    return sum(row.is_correct for row in judged) / max(1, len(judged))


def _grouped(judged: Sequence[Judged]) -> dict[int, list[Judged]]:
    groups: dict[int, list[Judged]] = {}
    for row in judged:
        groups.setdefault(row.group, []).append(row)
    return groups


def _rank(row: Judged, group: Sequence[Judged]) -> float:
    """Return l of the mode "group"."""
    lengths = [other.length for other in group]
    spread = max(lengths) - min(lengths)
    if not spread or not any(other.is_correct for other in group):
        return 0.0
    rank = 0.5 - (row.length - min(lengths)) / spread
    return rank if row.is_correct else min(0.0, rank)


def _rule(mode: LengthMode, settings: Mapping[str, float]) -> LengthRule:
    if mode not in RULES:
        raise EnvContractError(f"LengthReward has the modes {', '.join(RULES)}; received {mode!r}")
    kind: Any = RULES[mode]
    known = {entry.name: entry for entry in fields(kind) if entry.init}
    needed = {name for name, entry in known.items() if entry.default is MISSING}
    if settings.keys() - known.keys() or needed - settings.keys():
        optional = ", ".join(f"{name} {known[name].default}" for name in known.keys() - needed)
        raise EnvContractError(
            f"LengthReward in mode {mode} needs {', '.join(sorted(needed)) or 'nothing'} and takes "
            f"{optional}; received {', '.join(settings) or 'nothing'}"
        )
    rule = kind(**settings)
    wrong = [name for name in known if not 0 <= getattr(rule, name) < inf]
    wrong += [name for name in ("slo", "scale") if getattr(rule, name, 1) == 0]
    wrong += ["decay"] if getattr(rule, "decay", 0) >= 1 else []
    if wrong:
        raise EnvContractError(
            f"LengthReward in mode {mode} has settings out of range: "
            f"{', '.join(f'{name} {getattr(rule, name)}' for name in wrong)}. They are 0 or more, "
            "slo and scale above 0, decay below 1"
        )
    return rule
