"""`llmgym/Wordle-v0`: find one of the words that are shown, from marks of a guess's letters.

Each guess is one of the words, and is answered letter by letter: `+` for a letter in place, `?` for
one that is elsewhere in the hidden word, `-` for one that is not there, or not that often. The hash
of the words decides the split a task belongs to. A word that is found within the guesses that
halving what is possible needs earns 1.0.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.envs.deduction import Deduction, narrowest, turns_needed
from llmgym.envs.games import InTime
from llmgym.envs.word_list import COMMON
from llmgym.errors import TaskSourceError
from llmgym.messages import Task

LEVELS = range(3, 17)
LETTERS = 5
WORDS = tuple(word for word in COMMON if len(word) == LETTERS)
MAX_TURNS = 8
"""No list of 16 words needs more."""


@lru_cache(maxsize=200_000)
def marks(guess: str, hidden: str) -> str:
    """Mark each letter of a guess; one is elsewhere only as often as the hidden word has it."""
    pairs = list(zip(guess, hidden, strict=True))
    spare = Counter(other for letter, other in pairs if letter != other)
    marked = ""
    for letter, other in pairs:
        if letter == other:
            marked += "+"
            continue
        marked += "?" if spare[letter] else "-"
        spare[letter] -= spare[letter] > 0
    return marked


@final
class Wordle(Deduction):
    """The game; arguments are those of `LLMEnv`."""

    def candidates(self, task: Task) -> tuple[str, ...]:
        """Return the words of the task."""
        return tuple(task.meta["words"])

    def read(self, text: str) -> str | None:
        """Return the word that a response is, whatever its case."""
        word = text.strip().lower()
        return word if word in self.task.meta["words"] else None

    def answer(self, guess: str, hidden: str) -> str:
        """Mark the letters of a guess."""
        return "" if guess == hidden else marks(guess, hidden)

    def best(self, left: tuple[str, ...]) -> str:
        """Return the possible word whose marks tell most."""
        return narrowest(left, left, self.answer)

    def shown(self, guess: str) -> str:
        """Return the word."""
        return guess

    def expects(self) -> str:
        """Return what a guess is."""
        return "One of the words, please."


@final
@dataclass(frozen=True, slots=True)
class MakeWords:
    """Draws `level` words of one split and hides one of them."""

    split: Split
    spare: int

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw words until they are of this split."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, tuple[str, ...]]:
            words = tuple(WORDS[i] for i in rng.choice(len(WORDS), size=level, replace=False))
            return " ".join(sorted(words)), words

        words = draw_of_split(self.split, draw)
        par, hidden = guesses_needed(words), words[int(rng.integers(level))]
        turns = par + self.spare
        prompt = (
            f"My word is one of: {', '.join(words)}. Find it in {turns} guesses. I mark each "
            "letter of a guess: + in place, ? elsewhere, - not there."
        )
        return Task(
            id=task_id(f"{prompt} {hidden}"),
            prompt=prompt,
            answer=hidden,
            source="llmgym/Wordle-v0",
            level=level,
            meta={"words": words, "par": par, "turns": turns},
        )


@lru_cache(maxsize=4096)
def guesses_needed(words: tuple[str, ...]) -> int:
    """Return the guesses that the game's own player needs for the worst of some words."""
    return turns_needed(Wordle([Task(id="", prompt="")]), words)


def make(
    *,
    level: int = 8,
    spare: int = 0,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> Wordle:
    """Build the environment.

    Args:
        level: words to choose from, in [3, 16].
        spare: guesses beyond those that are needed; each one used costs 1 / (spare + 1).
        split: "train", "test" for the held-out sets of words, or "all".
        seed: another seed is another order of games.
        size: the number of games; None for no end.
        **kwargs: for `LLMEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    check_level(level, LEVELS)
    if spare < 0:
        raise TaskSourceError(f"spare must be 0 or more, got {spare}")
    tasks = procedural(MakeWords(split, spare), seed, level=level, size=size)
    kwargs.setdefault("max_turns", MAX_TURNS + spare)
    return Wordle(tasks, kwargs.pop("reward", None) or InTime(spare), **kwargs)
