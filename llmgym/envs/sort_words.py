"""`llmgym/SortWords-v0`: put words in alphabetical order.

A response that is the sorted words, with a space between two of them, earns 1.0; another one that
has exactly the given words earns half of the share of places that are right; anything else earns
0.0. Words are compared by the code points of their letters, so that accents come last. The hash of
the words, whatever their order, decides the split a task belongs to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.envs.word_list import WORDS
from llmgym.messages import Sample, Task
from llmgym.rewards.base import UnitReward

LEVELS = range(2, 13)
PARTIAL = 0.5


@final
@dataclass(frozen=True, slots=True)
class Sorted(UnitReward):
    """1.0 for the words in order; for another order, half of the share of right places."""

    name: str = "sorted"
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Compare each response word by word."""
        return [self._score(str(sample.text), str(sample.task.answer)) for sample in samples]

    @staticmethod
    def _score(text: str, answer: str) -> float:
        words, expected = text.split(), answer.split()
        if words == expected:
            return 1.0
        if sorted(words) != expected:
            return 0.0
        right = sum(word == other for word, other in zip(words, expected, strict=True))
        return PARTIAL * right / len(expected)


@final
@dataclass(frozen=True, slots=True)
class MakeWords:
    """Draws `level` different words of one split."""

    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw words until they are of this split, and not in order already."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, list[str]]:
            words = [WORDS[i] for i in rng.choice(len(WORDS), size=level, replace=False)]
            if words == sorted(words):
                words = words[::-1]
            return " ".join(sorted(words)), words

        words = draw_of_split(self.split, draw)
        prompt, answer = f"Sort by alphabet: {' '.join(words)}", " ".join(sorted(words))
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=answer,
            solution=answer,
            source="llmgym/SortWords-v0",
            level=level,
        )


def make(
    *,
    level: int = 4,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment.

    Args:
        level: words of a task, in [2, 12].
        split: "train", "test" for the held-out tasks, or "all".
        seed: another seed is another order of tasks.
        size: the number of tasks; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    check_level(level, LEVELS)
    tasks = procedural(MakeWords(split), seed, level=level, size=size)
    return SingleTurnEnv(tasks, kwargs.pop("reward", None) or Sorted(), **kwargs)
