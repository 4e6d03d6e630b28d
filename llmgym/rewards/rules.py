"""Rewards by rule: comparisons of a response with its task's answer, each 1.0 or 0.0.

Model text is parsed by literal parsers of our own and never evaluated. A reward that needs a
reference compares with `Task.answer`, or with the column named by `column`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

from llmgym.errors import MissingExtraError, RewardError
from llmgym.messages import Sample
from llmgym.rewards.base import Reward

MAX_CHARACTERS = 20_000
"""Longer responses are judged by their end: it bounds the work of every rule."""

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
MAX_DIGITS = 400
"""Longer numbers are no number: converting them takes quadratic time."""


def reference(sample: Sample, column: str | None) -> Any:  # noqa: ANN401 - any column's value
    """Return what a response is compared with.

    Raises:
        RewardError: the task has none.
    """
    value = sample.task.answer if column is None else sample.task.meta.get(column)
    if value is None:
        name = "answer" if column is None else f'column "{column}"'
        raise RewardError(f"task {sample.task.id} of {sample.task.source} has no {name} to compare")
    return value


def number(text: str) -> Fraction | None:
    """Return the number that a text is, exactly, or None: "1,234.5", "-3", "7/8", "50%" is 50."""
    text = text.strip().rstrip(".").strip("$%").strip()
    top, slash, bottom = text.partition("/")
    if len(text) > MAX_DIGITS or not NUMBER.fullmatch(top.strip()):
        return None
    value = Fraction(top.replace(",", "").strip())
    if not slash:
        return value
    if not bottom.strip().isascii() or not bottom.strip().isdigit() or int(bottom) == 0:
        return None
    return value / int(bottom)


def last_number(text: str) -> Fraction | None:
    """Return the last number that stands in a text, or None."""
    found = NUMBER.findall(text[-MAX_CHARACTERS:])
    return number(found[-1]) if found else None


def _end(sample: Sample) -> str:
    return str(sample.text)[-MAX_CHARACTERS:]


@final
@dataclass(frozen=True, kw_only=True)
class Exact(Reward):
    """1.0 where the response is the answer, character by character but for space around it."""

    name: str = "exact"
    column: str | None = None
    ignore_case: bool = False

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Compare each response with its reference."""
        return [float(self._same(sample)) for sample in samples]

    def _same(self, sample: Sample) -> bool:
        given, wanted = str(sample.text).strip(), str(reference(sample, self.column)).strip()
        if self.ignore_case:
            return given.casefold() == wanted.casefold()
        return given == wanted


@final
@dataclass(frozen=True, kw_only=True)
class Numeric(Reward):
    """1.0 where the number in the response is the answer.

    Attributes:
        column: the reference's column; None for the task's answer.
        tol: the largest difference allowed; 0.0 compares exactly, as fractions.
        whole: True where the response must be the number and nothing else; False takes its last.
    """

    name: str = "numeric"
    column: str | None = None
    tol: float = 0.0
    whole: bool = False

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Compare each response's number with its reference."""
        return [float(self._equal(sample)) for sample in samples]

    def _equal(self, sample: Sample) -> bool:
        wanted = number(str(reference(sample, self.column)))
        if wanted is None:
            raise RewardError(f"the answer of task {sample.task.id} is not a number")
        text = _end(sample)
        given = number(text) if self.whole else last_number(text)
        return given is not None and abs(given - wanted) <= self.tol
