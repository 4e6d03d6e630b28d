"""`llmgym/TwentyQuestions-v0`: find one of several things by asking what it is, yes or no.

A question is one of the properties in the prompt, as in "alive?"; a guess is one of the things, as
in "horse". Both cost a turn. The hash of the things decides the split a task belongs to. A thing
that is found within the turns that halving needs earns 1.0.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.envs.deduction import Deduction, narrowest, turns_needed
from llmgym.envs.games import InTime
from llmgym.errors import TaskSourceError
from llmgym.messages import Task

LEVELS = range(2, 17)
PROPERTIES = ("alive", "an animal", "big", "edible", "flying", "hard", "round", "wild")
"""The columns of the table; the digits of a row say which hold."""
TABLE = {
    "horse": "123",
    "wolf": "1238",
    "eagle": "1258",
    "hen": "124",
    "salmon": "1248",
    "bee": "1258",
    "whale": "1238",
    "mouse": "128",
    "goose": "1245",
    "oak": "1368",
    "mushroom": "148",
    "apple": "147",
    "carrot": "14",
    "cactus": "18",
    "coconut": "1467",
    "melon": "1347",
    "cheese": "4",
    "candy": "467",
    "bread": "47",
    "kite": "5",
    "plane": "356",
    "balloon": "57",
    "ball": "7",
    "coin": "67",
    "knife": "6",
    "tower": "36",
    "moon": "3678",
    "cloud": "358",
    "pillow": "",
    "sea": "38",
}
"""Things, with the numbers of the properties that they have; the first is 1."""
MAX_TURNS = 16


def has(thing: str, name: str) -> bool:
    """Return whether a thing has a property."""
    return str(PROPERTIES.index(name) + 1) in TABLE[thing]


@final
class TwentyQuestions(Deduction):
    """The game; arguments are those of `LLMEnv`."""

    def candidates(self, task: Task) -> tuple[str, ...]:
        """Return the things of the task."""
        return tuple(task.meta["things"])

    def read(self, text: str) -> str | None:
        """Return the property or the thing that a response names, with or without "is it"."""
        name = text.strip().rstrip("?.!").strip().lower()
        for start in ("is it ", "it is ", "a ", "the "):
            if name not in PROPERTIES:
                name = name.removeprefix(start)
        return name if name in PROPERTIES or name in self.task.meta["things"] else None

    def answer(self, guess: str, hidden: str) -> str:
        """Say yes or no."""
        if guess == hidden:
            return ""
        return "Yes." if guess in PROPERTIES and has(hidden, guess) else "No."

    def best(self, left: tuple[str, ...]) -> str:
        """Return the only thing that is left, or the property that halves them best."""
        return left[0] if len(left) == 1 else narrowest((*PROPERTIES, *left), left, self.answer)

    def shown(self, guess: str) -> str:
        """Return a thing as it is, a property as a question."""
        return f"{guess}?" if guess in PROPERTIES else guess

    def expects(self) -> str:
        """Return what a guess is."""
        return "Ask for a property, or name a thing."


@final
@dataclass(frozen=True, slots=True)
class MakeThings:
    """Draws `level` things of one split and hides one of them."""

    split: Split
    spare: int

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw things until they are of this split."""
        check_level(level, LEVELS)
        every = tuple(TABLE)

        def draw() -> tuple[str, tuple[str, ...]]:
            things = tuple(every[i] for i in rng.choice(len(every), size=level, replace=False))
            return " ".join(sorted(things)), things

        things = draw_of_split(self.split, draw)
        par, hidden = questions_needed(things), things[int(rng.integers(level))]
        turns = par + self.spare
        prompt = (
            f"I think of one of: {', '.join(things)}. Find it in {turns} turns. Ask whether it is "
            f"{', '.join(PROPERTIES)}, as in alive? Or name it, as in {things[0]}"
        )
        return Task(
            id=task_id(f"{prompt} {hidden}"),
            prompt=prompt,
            answer=hidden,
            source="llmgym/TwentyQuestions-v0",
            level=level,
            meta={"things": things, "par": par, "turns": turns},
        )


@lru_cache(maxsize=4096)
def questions_needed(things: tuple[str, ...]) -> int:
    """Return the turns that the game's own player needs for the worst of some things."""
    return turns_needed(TwentyQuestions([Task(id="", prompt="")]), things)


def make(
    *,
    level: int = 8,
    spare: int = 0,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> TwentyQuestions:
    """Build the environment.

    Args:
        level: things to choose from, in [2, 16].
        spare: turns beyond those that are needed; each one used costs 1 / (spare + 1).
        split: "train", "test" for the held-out sets of things, or "all".
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
    tasks = procedural(MakeThings(split, spare), seed, level=level, size=size)
    kwargs.setdefault("max_turns", MAX_TURNS + spare)
    return TwentyQuestions(tasks, kwargs.pop("reward", None) or InTime(spare), **kwargs)
