"""`llmgym/Countdown-v0`: reach a number by arithmetic on given ones, each used once.

A response is an expression of the given numbers with + - * / and brackets. It earns 1.0 if it uses
each number once and its value is the target, 0.1 if only its value is wrong, else 0.0. It is parsed
by a grammar and computed in fractions; nothing is evaluated. The hash of the numbers and the target
decides the split a task belongs to.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.messages import Sample, Task
from llmgym.rewards.base import UnitReward
from llmgym.rewards.calculator import MAX_CHARACTERS, compute

LEVELS = range(2, 7)
HIGHEST = 25
TARGETS = range(1, 200)
OPERATIONS = "+-*/"
WELL_FORMED = 0.1
INTEGER = re.compile(r"[0-9]+")
ALLOWED = re.compile(r"[-+*/() 0-9]+")


@final
@dataclass(frozen=True, slots=True)
class Reached(UnitReward):
    """1.0 for an expression of each number once that is the target, 0.1 where its value differs."""

    name: str = "reached"
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Compute each expression."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float:
        text, numbers = str(sample.text).strip(), sample.task.meta["numbers"]
        expression, _, claimed = (part.strip() for part in text.partition("="))
        if claimed not in ("", str(sample.task.answer)):
            return 0.0
        if len(expression) > MAX_CHARACTERS or not ALLOWED.fullmatch(expression):
            return 0.0
        if sorted(map(int, INTEGER.findall(expression))) != sorted(numbers):
            return 0.0
        try:
            value = compute(expression)
        except ValueError:
            return 0.0
        return 1.0 if value == int(sample.task.answer) else WELL_FORMED


def combine(rng: np.random.Generator, numbers: Sequence[int]) -> tuple[Fraction, str]:
    """Combine numbers, each once, by operations that are drawn; return the value and expression."""
    parts = [(Fraction(number), str(number)) for number in numbers]
    while len(parts) > 1:
        first, second = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        operations = OPERATIONS if second[0] else OPERATIONS[:-1]
        operation = operations[int(rng.integers(len(operations)))]
        left, right = first[0], second[0]
        value = {"+": left + right, "-": left - right, "*": left * right}.get(operation)
        value = left / right if value is None else value
        parts.append((value, f"({first[1]} {operation} {second[1]})"))
    return parts[0][0], parts[0][1].removeprefix("(").removesuffix(")")


@final
@dataclass(frozen=True, slots=True)
class MakeGame:
    """Draws `level` numbers and a target that they reach."""

    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw numbers and combine them, until the target is a number of `TARGETS`."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, tuple[list[int], int, str]]:
            while True:
                numbers = [int(number) for number in rng.integers(1, HIGHEST + 1, size=level)]
                value, expression = combine(rng, numbers)
                if value.denominator == 1 and int(value) in TARGETS:
                    return f"{sorted(numbers)} {value}", (numbers, int(value), expression)

        numbers, target, expression = draw_of_split(self.split, draw)
        listed = ", ".join(map(str, numbers))
        prompt = (
            f"Use each of the numbers {listed} once, with + - * / and brackets, to make {target}. "
            "Answer with the expression alone."
        )
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=target,
            solution=expression,
            source="llmgym/Countdown-v0",
            level=level,
            meta={"numbers": numbers},
        )


def make(
    *,
    level: int = 3,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment.

    Args:
        level: numbers that are given, in [2, 6].
        split: "train", "test" for the held-out games, or "all".
        seed: another seed is another order of games.
        size: the number of games; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    check_level(level, LEVELS)
    tasks = procedural(MakeGame(split), seed, level=level, size=size)
    return SingleTurnEnv(tasks, kwargs.pop("reward", None) or Reached(), **kwargs)
