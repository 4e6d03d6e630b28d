"""`llmgym/Mastermind-v0`: find a code from how many letters of a guess are right.

A code has `level` letters of an alphabet of six, which is drawn; a letter may occur several times.
Each guess is answered with how many letters are in place, and how many more are right elsewhere.
The hash of the alphabet decides the split, with all of its codes: holding out single ones would
teach never to guess them. A code that is found within the turns that a consistent player may need
earns 1.0.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from string import ascii_lowercase
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.envs.deduction import Deduction
from llmgym.envs.games import InTime
from llmgym.errors import TaskSourceError
from llmgym.messages import Task

LEVELS = range(2, 5)
ALPHABET = 6
PAR = {2: 7, 3: 8, 4: 9}
"""Turns that guessing the first consistent code needs for the worst code of each level."""


@lru_cache(maxsize=200_000)
def marks(guess: str, hidden: str) -> tuple[int, int]:
    """Return how many letters are in place, and how many more are right elsewhere."""
    in_place = sum(letter == other for letter, other in zip(guess, hidden, strict=True))
    common = (Counter(guess) & Counter(hidden)).total()
    return in_place, common - in_place


@lru_cache(maxsize=64)
def codes(letters: str, length: int) -> tuple[str, ...]:
    """Return every code of a length, in the order of the letters."""
    return tuple("".join(code) for code in product(letters, repeat=length))


@final
class Mastermind(Deduction):
    """The game; arguments are those of `LLMEnv`."""

    def candidates(self, task: Task) -> tuple[str, ...]:
        """Return every code of the task's letters."""
        return codes(task.meta["letters"], task.level)

    def read(self, text: str) -> str | None:
        """Return the code that a response is, with or without spaces between its letters."""
        code = "".join(text.split()).lower()
        fits = len(code) == self.task.level and set(code) <= set(self.task.meta["letters"])
        return code if fits else None

    def answer(self, guess: str, hidden: str) -> str:
        """Count the letters that are right."""
        in_place, elsewhere = marks(guess, hidden)
        return "" if guess == hidden else f"{in_place} in place, {elsewhere} elsewhere."

    def best(self, left: tuple[str, ...]) -> str:
        """Return the first code that agrees with every answer."""
        return left[0]

    def shown(self, guess: str) -> str:
        """Return the code with spaces between its letters, so that each is a token."""
        return " ".join(guess)

    def expects(self) -> str:
        """Return what a guess is."""
        return f"A code of {self.task.level} letters of {self.shown(self.task.meta['letters'])}."


@final
@dataclass(frozen=True, slots=True)
class MakeCode:
    """Draws letters of one split and a code of `level` of them."""

    split: Split
    spare: int

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw letters until they are of this split."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, str]:
            drawn = rng.choice(len(ascii_lowercase), size=ALPHABET, replace=False)
            letters = "".join(sorted(ascii_lowercase[i] for i in drawn))
            return letters, letters

        letters, turns = draw_of_split(self.split, draw), PAR[level] + self.spare
        code = "".join(letters[i] for i in rng.integers(ALPHABET, size=level))
        return Task(
            id=task_id(f"{letters} {code}"),
            prompt=f"Find my code of {level} letters of {' '.join(letters)} in {turns} guesses.",
            answer=code,
            source="llmgym/Mastermind-v0",
            level=level,
            meta={"letters": letters, "par": PAR[level], "turns": turns},
        )


def make(
    *,
    level: int = 3,
    spare: int = 0,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> Mastermind:
    """Build the environment.

    Args:
        level: letters of a code, in [2, 4].
        spare: guesses beyond those that a consistent player may need; each costs 1 / (spare + 1).
        split: "train", "test" for the held-out alphabets, or "all".
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
    tasks = procedural(MakeCode(split, spare), seed, level=level, size=size)
    kwargs.setdefault("max_turns", max(PAR.values()) + spare)
    return Mastermind(tasks, kwargs.pop("reward", None) or InTime(spare), **kwargs)


def worst_turns(length: int) -> int:
    """Return the turns that guessing the first consistent code needs for the worst code."""
    return _worst(codes("abcdef", length))


def _worst(left: Sequence[str]) -> int:
    groups: dict[tuple[int, int], list[str]] = {}
    for code in left:
        groups.setdefault(marks(left[0], code), []).append(code)
    whole = (len(left[0]), 0)
    return 1 + max((_worst(group) for told, group in groups.items() if told != whole), default=0)
