"""`llmgym/ReverseText-v0`: write a text backwards, letter by letter.

The tokens of a text hide its letters, which makes this hard for a language model. The hash of the
words decides the split a task belongs to.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.envs.word_list import WORDS
from llmgym.messages import Task
from llmgym.rewards.rules import Exact

LEVELS = range(1, 9)


@final
@dataclass(frozen=True, slots=True)
class MakeText:
    """Draws a text of `level` words of one split."""

    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw words until they are of this split."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, str]:
            text = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=level))
            return text, text

        text = draw_of_split(self.split, draw)
        prompt = f"Write backwards: {text}"
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=text[::-1],
            solution=text[::-1],
            source="llmgym/ReverseText-v0",
            level=level,
        )


def make(
    *,
    level: int = 1,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment: 1.0 for the text backwards and nothing else, 0.0 otherwise.

    Args:
        level: words of a text, in [1, 8].
        split: "train", "test" for the held-out texts, or "all".
        seed: another seed is another order of tasks.
        size: the number of tasks; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    check_level(level, LEVELS)
    tasks = procedural(MakeText(split), seed, level=level, size=size)
    return SingleTurnEnv(tasks, kwargs.pop("reward", None) or Exact(), **kwargs)
