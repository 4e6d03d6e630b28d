"""`llmgym/Calculator-v0`: arithmetic on large numbers, with a calculator to call.

A task is an operation on two integers, as in "4837 * 2916 =", which a small model cannot do in its
head. Its solution calls the calculator once and answers with the result. A right answer earns 1.0,
less for each call beyond the first; a call that is malformed or fails is answered with what was
wrong. Train and test have no pair of operands in common, whatever their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, final

import numpy as np

from llmgym.data.splits import Split, check_split
from llmgym.data.tasks import procedural
from llmgym.envs.arithmetic import OPERATIONS, MakeTask
from llmgym.errors import TaskSourceError
from llmgym.messages import Sample, Task
from llmgym.rewards.base import UnitReward
from llmgym.rewards.calculator import MAX_CHARACTERS, compute
from llmgym.rewards.rules import Numeric
from llmgym.tools.env import ToolEnv, ToolUse

DECIMALS = 6


def calculator(expression: str) -> str:
    """Compute an arithmetic expression.

    Args:
        expression: numbers, + - * / and brackets, such as "12 * (3 + 4)".
    """
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"an expression has at most {MAX_CHARACTERS} characters")
    return _written(compute(expression))


@final
@dataclass(frozen=True, slots=True)
class MakeSum:
    """Draws a task as `llmgym/Arithmetic-v0` does, with the call that solves it."""

    operations: str
    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw operands of `level` digits."""
        task = MakeTask(self.operations, self.split)(rng, level)
        expression = str(task.prompt).removesuffix(" =")
        calls = [{"name": "calculator", "arguments": {"expression": expression}}]
        return replace(
            task,
            solution=str(task.answer),
            source="llmgym/Calculator-v0",
            meta={**task.meta, "calls": calls},
        )


@final
class Calculated(UnitReward):
    """1.0 for the right number and nothing else, less for each call beyond the first.

    Args:
        call_cost: of each of those; an answer without any call costs nothing.
    """

    name, per_turn, collective = "calculated", False, False

    def __init__(self, call_cost: float = 0.1) -> None:
        self.call_cost = call_cost
        self._right = Numeric(whole=True)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Score the last response of each episode: one that is no answer earns nothing."""
        return [self._score(sample) for sample in samples]

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Raise `RewardError` for a task whose answer is no number."""
        self._right.check_tasks(tasks)

    def _score(self, sample: Sample) -> float:
        use = sample.state
        assert isinstance(use, ToolUse)
        if not use.answered or not self._right.agrees(sample):
            return 0.0
        return max(0.0, 1.0 - self.call_cost * max(0, len(use.calls) - 1))


def make_calculator(
    *,
    digits: int = 4,
    operations: str = "*",
    call_cost: float = 0.1,
    parser: str = "hermes",
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> ToolEnv:
    """Build the environment.

    Args:
        digits: of each operand, in [1, 9]; the level of the tasks.
        operations: any of `+`, `-` and `*`, one drawn for each task.
        call_cost: what each call beyond the first takes off the reward, in [0, 1].
        parser: how calls are written: `hermes`, `json`, `xml` or `python`.
        split: "train", "test" for the held-out pairs, or "all".
        seed: another seed is another order of tasks.
        size: the number of tasks; None for no end.
        **kwargs: for `ToolEnv` (describe, max_calls, tool_timeout, on_parse_error) and `LLMEnv`; a
            `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    if not 1 <= digits <= 9 or not 0 <= call_cost <= 1:
        raise TaskSourceError(
            f"digits must be in [1, 9] and call_cost in [0, 1], got {digits} and {call_cost}"
        )
    if not operations or set(operations) - set(OPERATIONS):
        raise TaskSourceError(f'operations must be some of "+-*", got {operations!r}')
    tasks = procedural(MakeSum(operations, split), seed, level=digits, size=size)
    reward = kwargs.pop("reward", None) or Calculated(call_cost)
    kwargs.setdefault("max_calls", 4)
    return ToolEnv(tasks, reward, [calculator], parser=parser, **kwargs)


def _written(value: Fraction) -> str:
    """Return a number in decimals, rounded to 6 of them."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.{DECIMALS}f}".rstrip("0").rstrip(".")
