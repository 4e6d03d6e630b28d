"""`llmgym/LetterCount-v0`: count how often a letter occurs in a text.

The tokens of a text hide its letters, which makes this hard for a language model. Half of the
letters are drawn from the text and half from the alphabet. The hash of the words decides the split
a task belongs to, with all of its letters.
"""

from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.envs.word_list import WORDS
from llmgym.messages import Task
from llmgym.rewards.rules import Numeric

LEVELS = range(1, 9)


@final
@dataclass(frozen=True, slots=True)
class MakeCount:
    """Draws a text of `level` words of one split, and a letter."""

    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw words until they are of this split."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, str]:
            text = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=level))
            return text, text

        text = draw_of_split(self.split, draw)
        letters = text.replace(" ", "") if rng.random() < 0.5 else ascii_lowercase
        letter = letters[int(rng.integers(len(letters)))]
        prompt = f'How many times does the letter "{letter}" occur in "{text}"?'
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=text.count(letter),
            solution=str(text.count(letter)),
            source="llmgym/LetterCount-v0",
            level=level,
            meta={"letter": letter, "text": text},
        )


def make(
    *,
    level: int = 1,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment: 1.0 for the right number and nothing else, 0.0 otherwise.

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
    tasks = procedural(MakeCount(split), seed, level=level, size=size)
    return SingleTurnEnv(tasks, kwargs.pop("reward", None) or Numeric(whole=True), **kwargs)
