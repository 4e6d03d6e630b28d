"""`llmgym/Arithmetic-v0`: one operation on two integers, as in "37 + 58 =".

Train and test are disjoint by construction: a hash of the pair of operands, whatever their order,
decides the split it belongs to, so no held-out sum was ever trained on turned around.
"""

from dataclasses import dataclass
from operator import add, mul, sub
from typing import Any, final
from zlib import crc32

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.errors import TaskSourceError
from llmgym.messages import Task
from llmgym.rewards.rules import Numeric

OPERATIONS = {"+": add, "-": sub, "*": mul}
TEST_ONE_IN = 5
"""One pair of operands in this many is held out."""


def split_of(a: int, b: int) -> Split:
    """Return the split that a pair of operands belongs to, in either order."""
    low, high = sorted((a, b))
    return "test" if crc32(f"{low},{high}".encode()) % TEST_ONE_IN == 0 else "train"


@final
@dataclass(frozen=True, slots=True)
class MakeTask:
    """Draws a task of two operands of `level` digits from one split."""

    operations: str
    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw operands until a pair is of this split: five times on average for the test one."""
        operation = self.operations[int(rng.integers(len(self.operations)))]
        least = 10 ** (level - 1) if level > 1 else 0
        while True:
            a, b = (int(number) for number in rng.integers(least, 10**level, size=2))
            if self.split in ("all", split_of(a, b)):
                break
        prompt, answer = f"{a} {operation} {b} =", OPERATIONS[operation](a, b)
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=answer,
            solution=f" {answer}",
            source="llmgym/Arithmetic-v0",
            level=level,
            meta={"a": a, "b": b, "operation": operation},
        )


def make(
    *,
    digits: int = 2,
    operations: str = "+",
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment: 1.0 for the right number and nothing else, 0.0 otherwise.

    Args:
        digits: of each operand, in [1, 9]; the level of the tasks.
        operations: any of `+`, `-` and `*`, one drawn for each task.
        split: "train", "test" for the held-out pairs, or "all".
        seed: another seed is another order of tasks.
        size: the number of tasks; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    if not 1 <= digits <= 9:
        raise TaskSourceError(f"digits must be in [1, 9], got {digits}")
    if not operations or set(operations) - set(OPERATIONS):
        raise TaskSourceError(f'operations must be some of "+-*", got {operations!r}')
    tasks = procedural(MakeTask(operations, split), seed, level=digits, size=size)
    reward = kwargs.pop("reward", None) or Numeric(whole=True)
    return SingleTurnEnv(tasks, reward, **kwargs)
