"""`llmgym/ChainSum-v0`: a sum and difference of several numbers, as in "7 + 12 - 5 =".

Train and test are disjoint by construction: the hash of the numbers with their signs, whatever
their order, decides the split a task belongs to.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.errors import TaskSourceError
from llmgym.messages import Task
from llmgym.rewards.rules import Numeric

LEVELS = range(2, 11)


def key_of(terms: list[int]) -> str:
    """Return what decides the split of a sum: its terms in one order."""
    return ",".join(str(term) for term in sorted(terms))


@final
@dataclass(frozen=True, slots=True)
class MakeSum:
    """Draws a sum of `level` terms of `digits` digits from one split."""

    digits: int
    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw terms until they are of this split."""
        check_level(level, LEVELS)
        least = 10 ** (self.digits - 1) if self.digits > 1 else 1

        def draw() -> tuple[str, list[int]]:
            sizes = rng.integers(least, 10**self.digits, size=level)
            signs = np.where(rng.random(level) < 0.5, -1, 1)
            signs[0] = 1
            terms = [int(term) for term in sizes * signs]
            return key_of(terms), terms

        terms = draw_of_split(self.split, draw)
        rest = [f"{'-' if term < 0 else '+'} {abs(term)}" for term in terms[1:]]
        prompt, answer = " ".join([str(terms[0]), *rest, "="]), sum(terms)
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=answer,
            solution=f" {answer}",
            source="llmgym/ChainSum-v0",
            level=level,
            meta={"terms": terms},
        )


def make(
    *,
    level: int = 3,
    digits: int = 2,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment: 1.0 for the right number and nothing else, 0.0 otherwise.

    Args:
        level: terms of a sum, in [2, 10].
        digits: of each term, in [1, 9].
        split: "train", "test" for the held-out sums, or "all".
        seed: another seed is another order of tasks.
        size: the number of tasks; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    check_level(level, LEVELS)
    if not 1 <= digits <= 9:
        raise TaskSourceError(f"digits must be in [1, 9], got {digits}")
    tasks = procedural(MakeSum(digits, split), seed, level=level, size=size)
    reward = kwargs.pop("reward", None) or Numeric(whole=True)
    return SingleTurnEnv(tasks, reward, **kwargs)
