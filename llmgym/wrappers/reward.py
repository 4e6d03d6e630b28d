"""Wrappers of what a response earns; they override the `score_batch` half.

Each is a function of a sample and its score, and adds a named part where it adds a term. A score
that failed is left alone; a term is added only to a response that was scored.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Literal, final

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from llmgym.env import LLMWrapper
from llmgym.errors import EnvContractError
from llmgym.messages import Sample, Score
from llmgym.rewards.rules import THINK_FORMAT

Unit = Literal["tokens", "characters"]


class AdjustScore(LLMWrapper, ABC):
    """A wrapper that changes the scores, one by one."""

    @abstractmethod
    def adjust(self, sample: Sample, score: Score) -> Score:
        """Return the new score of a sample; `score` is "ok" or "abstain"."""

    @final
    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Score samples of any slots, then change each score that did not fail."""
        scores = self.inner.score_batch(samples)
        return [
            score if score.status == "error" else self.adjust(sample, score)
            for sample, score in zip(samples, scores, strict=True)
        ]


class AddTerm(AdjustScore, ABC):
    """A wrapper that adds one term to every response that was scored."""

    part: str
    """Name of the term among the parts of the score."""
    term_bounds: tuple[float, float] = (-inf, inf)
    """The least and the most that the term adds."""

    @abstractmethod
    def term(self, sample: Sample, score: Score) -> float:
        """Return what is added to the score."""

    @property
    def reward_bounds(self) -> tuple[float, float]:
        """The bounds below, moved by the term's own."""
        low, high = self.inner.reward_bounds
        return low + self.term_bounds[0], high + self.term_bounds[1]

    @final
    def adjust(self, sample: Sample, score: Score) -> Score:
        """Add the term, also as a part."""
        if score.status == "abstain":
            return score
        term = self.term(sample, score)
        return replace(score, value=score.value + term, parts={**score.parts, self.part: term})


@final
class LengthPenalty(AddTerm, RecordConstructorArgs):
    """Take `slope` for every unit of length above `free`.

    Args:
        env: what is wrapped.
        free: length that costs nothing.
        slope: what each further unit costs, not negative.
        only_correct: True to spare responses whose score is not above 0.
        unit: "tokens" (a plain `str` has none), or "characters".
    """

    part = "length_penalty"
    term_bounds = (-inf, 0.0)

    def __init__(
        self,
        env: gymnasium.Env,
        free: int,
        slope: float,
        *,
        only_correct: bool = True,
        unit: Unit = "tokens",
    ) -> None:
        if free < 0 or slope < 0:
            message = f"LengthPenalty takes free and slope from 0 on; received {free} and {slope}"
            raise EnvContractError(message)
        RecordConstructorArgs.__init__(
            self, free=free, slope=slope, only_correct=only_correct, unit=unit
        )
        super().__init__(env)
        self.free, self.slope, self.only_correct = free, slope, only_correct
        self.unit: Unit = checked_unit(unit)

    def term(self, sample: Sample, score: Score) -> float:
        """Return -slope * max(0, length - free)."""
        if self.only_correct and score.value <= 0:
            return 0.0
        return -self.slope * max(0, response_length(sample, self.unit) - self.free)


@final
class SoftOverlong(AddTerm, RecordConstructorArgs):
    """Take up to 1 as a response nears the longest one allowed.

        0                                 length <= max_len - cache
        (max_len - cache - length)/cache  between
        -1                                length > max_len

    Args:
        env: what is wrapped.
        max_len: the longest response that is not fully punished.
        cache: width of the slope below it, in (0, max_len].
        unit: "tokens" (a plain `str` has none), or "characters".

    Source: DAPO, arXiv:2503.14476, eq. 13.
    """

    part = "overlong"
    term_bounds = (-1.0, 0.0)

    def __init__(
        self, env: gymnasium.Env, max_len: int, cache: int, *, unit: Unit = "tokens"
    ) -> None:
        if not 0 < cache <= max_len:
            message = f"SoftOverlong needs 0 < cache <= max_len; received {cache} and {max_len}"
            raise EnvContractError(message)
        RecordConstructorArgs.__init__(self, max_len=max_len, cache=cache, unit=unit)
        super().__init__(env)
        self.max_len, self.cache = max_len, cache
        self.unit: Unit = checked_unit(unit)

    def term(self, sample: Sample, score: Score) -> float:
        """Return the value of the table above."""
        over = response_length(sample, self.unit) - (self.max_len - self.cache)
        return -min(1.0, max(0.0, over / self.cache))


@final
class FormatReward(AddTerm, RecordConstructorArgs):
    """Pay for a response of the right form.

    Args:
        env: what is wrapped.
        pattern: a regular expression that the whole response must match; by default what
            the reward `think_format` pays for.
        weight: what it pays.
    """

    part = "format"

    def __init__(
        self, env: gymnasium.Env, pattern: str = THINK_FORMAT, *, weight: float = 0.1
    ) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            message = f"FormatReward needs a regular expression; {pattern!r} is none: {error}"
            raise EnvContractError(message) from error
        RecordConstructorArgs.__init__(self, pattern=pattern, weight=weight)
        super().__init__(env)
        self.weight = weight
        self.term_bounds = (min(0.0, weight), max(0.0, weight))

    def term(self, sample: Sample, score: Score) -> float:
        """Return the weight where the whole response matches, else 0."""
        return self.weight if self.pattern.fullmatch(sample.response) else 0.0


@final
class RepetitionPenalty(AddTerm, RecordConstructorArgs):
    """Take the share of a response's n-grams of words that stood there before.

    Args:
        env: what is wrapped.
        n: words of an n-gram.
        weight: what a response of nothing but repetitions nearly loses.
    """

    part = "repetition"

    def __init__(self, env: gymnasium.Env, n: int, *, weight: float = 1.0) -> None:
        if n < 1 or weight < 0:
            message = f"RepetitionPenalty needs n >= 1 and weight >= 0; received {n} and {weight}"
            raise EnvContractError(message)
        RecordConstructorArgs.__init__(self, n=n, weight=weight)
        super().__init__(env)
        self.n, self.weight = n, weight
        self.term_bounds = (-weight, 0.0)

    def term(self, sample: Sample, score: Score) -> float:
        """Return -weight * (1 - distinct n-grams / n-grams)."""
        words = sample.response.split()
        grams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return -self.weight * (1 - len(set(grams)) / len(grams)) if grams else 0.0


@final
class ClipReward(AdjustScore, RecordConstructorArgs):
    """Keep the whole reward of a step within bounds."""

    def __init__(self, env: gymnasium.Env, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise EnvContractError(f"ClipReward needs low < high; received {low} and {high}")
        RecordConstructorArgs.__init__(self, low=low, high=high)
        super().__init__(env)
        self.low, self.high = low, high

    @property
    def reward_bounds(self) -> tuple[float, float]:
        """The bounds below, clipped."""
        low, high = self.inner.reward_bounds
        return self._clip(low), self._clip(high)

    def adjust(self, sample: Sample, score: Score) -> Score:
        """Clip the value."""
        return replace(score, value=self._clip(score.value))

    def _clip(self, value: float) -> float:
        return min(self.high, max(self.low, value))


@final
class ScaleReward(AdjustScore, RecordConstructorArgs):
    """Multiply the whole reward of a step, spans included."""

    def __init__(self, env: gymnasium.Env, scale: float) -> None:
        RecordConstructorArgs.__init__(self, scale=scale)
        super().__init__(env)
        self.scale = scale

    @property
    def reward_bounds(self) -> tuple[float, float]:
        """The bounds below, scaled."""
        low, high = sorted(self.scale * bound for bound in self.inner.reward_bounds)
        return low, high

    def adjust(self, sample: Sample, score: Score) -> Score:
        """Scale the value and the spans."""
        spans = tuple((start, end, self.scale * reward) for start, end, reward in score.spans)
        return replace(score, value=self.scale * score.value, spans=spans)


def response_length(sample: Sample, unit: Unit) -> int:
    """Return the length of a response: its sampled tokens, or its characters."""
    return len(sample.response.token_ids) if unit == "tokens" else len(sample.response)


def checked_unit(unit: Unit) -> Unit:
    """Return a unit of length.

    Raises:
        EnvContractError: it is none.
    """
    if unit not in ("tokens", "characters"):
        raise EnvContractError(f'unit is "tokens" or "characters"; received {unit!r}')
    return unit
