r"""`math.boxed`: a mathematical answer in `\boxed{...}`, compared after normalising its notation.

The normaliser rewrites text by fixed rules, and compares what are numbers as exact fractions. It
knows no algebra (`2x` and `x+x` differ) and evaluates nothing.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from llmgym.errors import RewardError
from llmgym.messages import Sample, Task
from llmgym.rewards.rules import MAX_CHARACTERS, Comparison, number, reference
from llmgym.rewards.verdict import row_of, shown

MAX_ANSWER = 500
"""A longer answer is none: it bounds the work of normalising."""

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
SPACES = re.compile(r"\\[,;:! ]|\\q?quad|~|\s+")
WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}")
SHORT_ROOT = re.compile(r"\\sqrt\s*(\d)(?!\d)")
FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)")
MIXED = re.compile(r"(-?)(\d+)\((\d+)\)/\((\d+)\)")
GROUPED = re.compile(r"(?<=\d)(?:\{,\}|,)(?=\d{3}(?!\d))")
SIGNS = re.compile(r"\\left|\\right|\\\$|\$|\\%|%|\^\{?\\circ\}?|\\degree|\\displaystyle|\\!")
UNITS = re.compile(
    r"(?<=[\d)])(?:dollars?|cents?|degrees?|percent|units?|square|cubic|inches|inch|feet|foot|"
    r"miles?|hours?|minutes?|seconds?|days?|weeks?|years?|apples?|[ck]?m|kg|g|mph|points?)"
    r"(?:\^?\{?[23]\}?)?$"
)


def boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{...}` of a text holds; None without one, or where it is cut."""
    text = text[-MAX_CHARACTERS:]
    start = max((match.end() for match in BOX.finditer(text)), default=len(text))
    depth = 1
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start:end]
    return None


def normalise(answer: str) -> str:
    r"""Rewrite an answer's notation: `\dfrac{1}{2}` is `(1)/(2)`, `1,000\text{ m}` is `1000`."""
    answer = answer.strip()[:MAX_ANSWER].rstrip(".")
    answer = WRAPPERS.sub(r"\1", answer)
    answer = SPACES.sub("", SIGNS.sub("", answer))
    answer = SHORT_ROOT.sub(r"\\sqrt{\1}", answer)
    answer = SHORT_FRACTION.sub(r"(\1)/(\2)", answer)
    for _ in range(4):  # nested fractions, from the inside out
        answer = FRACTION.sub(r"(\1)/(\2)", answer)
    answer = GROUPED.sub("", answer)
    answer = answer.replace(r"\cdot", "*").replace(r"\times", "*").replace(r"\pi", "pi")
    answer = re.sub(r"^[a-zA-Z]=", "", answer)
    return UNITS.sub("", answer) or answer


def unwrapped(text: str) -> str:
    """Take off the round brackets that enclose all of a text: `((3))` is `3`, `(3` stays."""
    while text.startswith("(") and text.endswith(")"):
        depth = 0
        for place, character in enumerate(text):
            depth += (character == "(") - (character == ")")
            if depth == 0 and place < len(text) - 1:
                return text
        if depth:
            return text
        text = text[1:-1]
    return text


def value(answer: str) -> Fraction | None:
    """Return a normalised answer's value where it is a number or a fraction of two, or None."""
    mixed = MIXED.fullmatch(answer)
    if mixed and int(mixed[4]):
        size = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return -size if mixed[1] else size
    sign = -1 if answer.startswith("-(") else 1
    whole = unwrapped(answer.removeprefix("-") if sign < 0 else answer)
    numbers = [number(unwrapped(part)) for part in whole.split("/")]
    if len(numbers) > 2 or None in numbers:
        return None
    top, bottom = (*numbers, Fraction(1))[:2]
    return sign * top / bottom if top is not None and bottom else None


def same_answer(answer: str, expected: str) -> bool:
    """Return whether two answers are equal: as numbers where both are, as text otherwise."""
    if len(answer) > MAX_ANSWER:
        return False
    answer, expected = normalise(answer), normalise(expected)
    numbers = value(answer), value(expected)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return answer == expected and answer != ""


@final
@dataclass(frozen=True, kw_only=True)
class Boxed(Comparison):
    r"""1.0 where the last `\boxed{...}` of the response equals the answer.

    Attributes:
        column: the reference's column; None for the task's answer. It may itself be boxed.
    """

    name: str = "math.boxed"
    column: str | None = None

    def expected(self, task: Task) -> str:
        """Return the reference, or what its last box holds."""
        text = str(reference(task, self.column))
        expected = boxed(text) or text
        if not same_answer(expected, expected):
            raise RewardError(
                f"the answer {shown(text)} of {row_of(task)} is empty, or longer than the "
                f"{MAX_ANSWER} characters of an answer"
            )
        return expected

    def agrees(self, sample: Sample) -> bool:
        """Compare what the last box holds."""
        expected, answer = self.expected(sample.task), boxed(str(sample.text))
        return answer is not None and same_answer(answer, expected)
