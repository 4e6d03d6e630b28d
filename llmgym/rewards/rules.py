"""Rewards by rule: comparisons of a response with its task's answer, each 1.0 or 0.0.

Model text is parsed by literal parsers of our own and never evaluated. A reward that needs a
reference compares with `Task.answer`, or with the column named by `column`.
"""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, final

from llmgym.content import cell_of, gold_of, has_column
from llmgym.errors import RewardError, TaskSourceError
from llmgym.messages import Sample, Task
from llmgym.rewards.base import Reward, UnitReward
from llmgym.rewards.verdict import row_of, shown

MAX_CHARACTERS = 20_000
"""Longer responses are judged by their end: it bounds the work of every rule."""

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
WHOLE_NUMBER = re.compile(rf"[-+]?(?:{DIGITS})")
# A sign belongs to a number unless something stands before it: the last number of "9-4" is 4.
# A fraction is one number: the last number of "it is 1/2" is a half, not 2.
ANY_NUMBER = re.compile(rf"(?:(?<![\w.)\]])[-+])?(?:{DIGITS})(?: ?/ ?[0-9]+(?!\.?[0-9]))?")
MAX_DIGITS = 400
"""Longer numbers are no number: converting them takes quadratic time."""


def reference(task: Task, column: str | None) -> Any:  # noqa: ANN401 - any column's value
    """Return what a response is compared with: a column, dotted or not, or else the answer.

    Raises:
        RewardError: the task has none, or one that is neither text nor a number.
    """
    if column is None:
        value = expected_answer(task)
    else:
        value = cell_of(task.meta, column) if has_column(task.meta, column) else None
    if value is None:
        name = "answer" if column is None else f'column "{column}"'
        raise RewardError(f"{row_of(task)} has no {name} to compare")
    if isinstance(value, Mapping | list):
        try:
            gold_of(value, column or "answer", row_of(task))
        except TaskSourceError as error:
            raise RewardError(str(error)) from error
    return value


def expected_answer(task: Task) -> Any:  # noqa: ANN401 - any column's value
    """Return what a response is compared with, for every reward alike.

    It is the column that the environment's setting `answer_column` names, or what the environment
    made of it (GSM8K's number behind `####`); else the column `answer`; None where there is none.
    """
    return task.meta.get("answer") if task.answer is None else task.answer


def number(text: str) -> Fraction | None:
    """Return the number that a text is, exactly, or None: "1,234.5", "-3", "7/8", "50%" is 50."""
    text = text.strip().rstrip(".").strip("$%").strip()
    top, slash, bottom = text.partition("/")
    if len(text) > MAX_DIGITS or not WHOLE_NUMBER.fullmatch(top.strip()):
        return None
    value = Fraction(top.replace(",", "").strip())
    if not slash:
        return value
    if not bottom.strip().isascii() or not bottom.strip().isdigit() or int(bottom) == 0:
        return None
    return value / int(bottom)


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text, or None."""
    numbers = ANY_NUMBER.findall(text[-MAX_CHARACTERS:])
    return number(numbers[-1]) if numbers else None


def _end(sample: Sample) -> str:
    return str(sample.text)[-MAX_CHARACTERS:]


class Comparison(UnitReward, ABC):
    """1.0 where a response agrees with the gold answer of its task, 0.0 elsewhere.

    Attributes:
        column: the reference's column; None for the task's answer.
    """

    column: str | None

    @abstractmethod
    def expected(self, task: Task) -> Any:  # noqa: ANN401 - a number, a text, a letter
        """Return what a response must agree with; `RewardError` where there is no such thing."""

    @abstractmethod
    def agrees(self, sample: Sample) -> bool:
        """Return whether a response agrees with its reference."""

    @final
    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Raise `RewardError` for the first task whose reference is missing or unusable."""
        for task in tasks:
            self.expected(task)

    @final
    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Compare each response with its reference."""
        return [float(self.agrees(sample)) for sample in samples]


@final
@dataclass(frozen=True, kw_only=True)
class Exact(Comparison):
    """1.0 where the response is the answer, character by character but for space around it."""

    name: str = "exact"
    column: str | None = None
    ignore_case: bool = False

    def expected(self, task: Task) -> str:
        """Return the reference without space around it."""
        return str(reference(task, self.column)).strip()

    def agrees(self, sample: Sample) -> bool:
        """Compare the texts."""
        answer, expected = str(sample.text).strip(), self.expected(sample.task)
        if self.ignore_case:
            return answer.casefold() == expected.casefold()
        return answer == expected


@final
@dataclass(frozen=True, kw_only=True)
class Numeric(Comparison):
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

    def expected(self, task: Task) -> Fraction:
        """Return the reference's number."""
        answer = reference(task, self.column)
        # The text of a float such as 1e-05 has an exponent, which `number` does not read.
        expected = number(f"{Decimal(str(answer)):f}" if isinstance(answer, float) else str(answer))
        if expected is None:
            raise RewardError(f"the answer {shown(answer)} of {row_of(task)} is not a number")
        return expected

    def agrees(self, sample: Sample) -> bool:
        """Compare the numbers."""
        expected, text = self.expected(sample.task), _end(sample)
        answer = number(text) if self.whole else last_number(text)
        return answer is not None and abs(answer - expected) <= self.tol


@final
@dataclass(frozen=True, kw_only=True)
class Choice(Comparison):
    """1.0 where the option that the response names is the answer.

    The option is the last capital letter that stands alone, with or without brackets: "B", "(b)",
    "The answer is B." A small letter counts only in brackets or as the whole response, since "a"
    and "i" are words.
    """

    name: str = "choice"
    column: str | None = None
    options: str = "ABCDE"

    def expected(self, task: Task) -> str:
        """Return the reference's letter."""
        answer = reference(task, self.column)
        expected = str(answer).strip().strip("()").upper()
        if len(expected) != 1 or expected not in self.options.upper():
            raise RewardError(
                f"the answer {shown(answer)} of {row_of(task)} is none of the options "
                f"{self.options}"
            )
        return expected

    def agrees(self, sample: Sample) -> bool:
        """Compare the letters."""
        return self._named(sample) == self.expected(sample.task)

    def _named(self, sample: Sample) -> str | None:
        text = _end(sample).strip()
        if len(text) == 1:
            text = text.upper()
        capitals = re.escape(self.options.upper())
        letters = f"{capitals}{re.escape(self.options.lower())}"
        pattern = rf"\(([{letters}])\)|(?<!\w)([{capitals}])(?![\w'])"
        matches = re.findall(pattern, text)
        return (matches[-1][0] or matches[-1][1]).upper() if matches else None


@final
@dataclass(frozen=True, kw_only=True)
class Regex(UnitReward):
    """1.0 where the pattern is found in the response; the pattern is yours, so keep it linear.

    A pattern with nested repetition can take exponential time: wrap this reward in `Isolated`.
    """

    pattern: str
    name: str = "regex"
    whole: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise RewardError(f"{self.pattern!r} is no regular expression: {error}") from error

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Search each response; with `whole`, match all of it."""
        pattern = re.compile(self.pattern, re.DOTALL)
        find = pattern.fullmatch if self.whole else pattern.search
        return [float(find(_end(sample)) is not None) for sample in samples]


@final
@dataclass(frozen=True, kw_only=True)
class Contains(Comparison):
    """1.0 where the response contains the reference as a word or phrase of its own."""

    name: str = "contains"
    column: str | None = None
    ignore_case: bool = True

    def expected(self, task: Task) -> str:
        """Return the reference without space around it."""
        expected = str(reference(task, self.column)).strip()
        if not expected:
            raise RewardError(f"{row_of(task)} has an empty text to look for")
        return expected

    def agrees(self, sample: Sample) -> bool:
        """Search the response."""
        expected = self.expected(sample.task)
        flags = re.IGNORECASE if self.ignore_case else re.NOFLAG
        pattern = rf"(?<!\w){re.escape(expected)}(?!\w)"
        return re.search(pattern, _end(sample), flags) is not None


_NO_TAG = r"(?!</?think>)"
THINK_FORMAT = rf"\s*<think>\s*{_NO_TAG}\S(?:{_NO_TAG}.)*</think>\s*{_NO_TAG}\S(?:{_NO_TAG}.)*"
"""One block of thinking with text in it, then an answer with text in it; `.` is any character."""


@final
@dataclass(frozen=True, kw_only=True)
class ThinkFormat(UnitReward):
    """1.0 for one block of `<think>...</think>` with text in it, then an answer with text in it.

    It reads what the policy wrote, before a wrapper takes the thinking away.
    """

    name: str = "think_format"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Judge the form of each response."""
        formed = re.compile(THINK_FORMAT, re.DOTALL).fullmatch
        return [float(formed(str(sample.response)) is not None) for sample in samples]


SCRIPTS = {
    "latin": ("LATIN",),
    "cyrillic": ("CYRILLIC",),
    "greek": ("GREEK",),
    "arabic": ("ARABIC",),
    "hebrew": ("HEBREW",),
    "devanagari": ("DEVANAGARI",),
    "thai": ("THAI",),
    "hangul": ("HANGUL",),
    "japanese": ("HIRAGANA", "KATAKANA", "CJK"),
    "chinese": ("CJK",),
}
"""First words of the Unicode names of the letters of each script."""


@final
@dataclass(frozen=True, kw_only=True)
class Language(UnitReward):
    """The share of a response's letters that belong to a script, 0.0 where it has no letters.

    It tells scripts apart, not languages: English and French are both "latin".
    """

    script: str
    name: str = "language"

    def __post_init__(self) -> None:
        if self.script not in SCRIPTS:
            raise RewardError(f"script must be one of {', '.join(SCRIPTS)}, got {self.script!r}")

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Count each response's letters."""
        return [self._share(_end(sample)) for sample in samples]

    def _share(self, text: str) -> float:
        letters = [unicodedata.name(character, "") for character in text if character.isalpha()]
        ours = [name for name in letters if name.startswith(SCRIPTS[self.script])]
        return len(ours) / len(letters) if letters else 0.0


@final
@dataclass(frozen=True, kw_only=True)
class Constant(Reward):
    """The same for every response: the control that nothing can be learned from."""

    value: float = 0.0
    name: str = "constant"

    @property
    def bounds(self) -> tuple[float, float]:
        """The value, twice."""
        return self.value, self.value

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Return the value for each sample."""
        return [self.value] * len(samples)
