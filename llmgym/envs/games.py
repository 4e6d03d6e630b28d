"""`llmgym/GuessNumber-v0`: find a hidden number; each guess is answered "Higher." or "Lower.".

An episode takes several turns. A task is a range, such as 211 to 225, and a number in it, and a
hash of the range decides the split it belongs to, with all of its numbers: holding out single ones
would teach never to guess them. Bisection finds every number, so
that it earns 1.0; one that is not found earns 0.0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final
from zlib import crc32

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_split
from llmgym.data.tasks import TaskSource, procedural
from llmgym.env import LLMEnv, RewardSpec
from llmgym.errors import TaskSourceError
from llmgym.messages import Completion, Reply, Sample, Task
from llmgym.rewards.base import UnitReward

HIGHEST = 999
STEP = 10
"""A range begins one above a multiple of it."""
LEVELS = range(2, 7)
TEST_ONE_IN = 5
"""One range in this many is held out."""


def split_of(low: int, high: int) -> Split:
    """Return the split that the games of a range belong to."""
    return "test" if crc32(f"{low},{high}".encode()) % TEST_ONE_IN == 0 else "train"


@final
@dataclass(frozen=True, slots=True)
class MakeGame:
    """Draws a game of 2^level - 1 numbers, which `level` guesses halve down to one."""

    split: Split
    spare: int

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw games until one is of this split: five times on average for the test one."""
        if level not in LEVELS:
            raise TaskSourceError(f"level must be in [{LEVELS[0]}, {LEVELS[-1]}], got {level}")
        width = 2**level - 1
        while True:
            low = 1 + STEP * int(rng.integers((HIGHEST - width) // STEP + 1))
            high = low + width - 1
            if self.split in ("all", split_of(low, high)):
                break
        number, guesses = int(rng.integers(low, high + 1)), level + self.spare
        return Task(
            id=task_id(f"{low} {high} {number}"),
            prompt=f"Find my number from {low} to {high} in {guesses} guesses.",
            answer=number,
            source="llmgym/GuessNumber-v0",
            level=level,
            meta={"low": low, "high": high, "guesses": guesses},
        )


@final
@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a game that its reward reads."""

    guessed: bool
    guesses: int


@final
@dataclass(frozen=True, slots=True)
class InTime(UnitReward):
    """1.0 for what was found within the turns that are needed, less for each further one, else 0.0.

    The turns that are needed are `par` in a task's `meta`, else its level.

    Attributes:
        spare: turns beyond those; each one used costs 1 / (spare + 1).
    """

    spare: int = 0
    name: str = "in_time"
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Score the last sample of each game."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float:
        progress, task = sample.state, sample.task
        assert isinstance(progress, Progress)
        extra = max(0, progress.guesses - int(task.meta.get("par", task.level)))
        return 1.0 - extra / (self.spare + 1) if progress.guessed else 0.0


@final
class GuessNumber(LLMEnv):
    """A game of higher and lower.

    Args:
        tasks: games.
        reward: as in `LLMEnv`; it sees a `Progress` as `Sample.state`.
        skill: the share of turns in which `solve` bisects; in the others it draws a number that is
            still possible, always the same one for the same game and turn.
        **kwargs: for `LLMEnv`.
    """

    def __init__(
        self,
        tasks: TaskSource | Sequence[Task],
        reward: RewardSpec = None,
        *,
        skill: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(tasks, reward, **kwargs)
        self.skill = skill
        self._low = self._high = self._guesses = 0
        self._guessed = False

    def prompt(self, task: Task) -> str:
        """Begin a game: every number of the range is still possible."""
        self._low, self._high = int(task.meta["low"]), int(task.meta["high"])
        self._guesses, self._guessed = 0, False
        return str(task.prompt)

    def reply(self, response: Completion) -> Reply:
        """Compare a guess with the number; what is no number of the range costs a guess as well."""
        low, high = self.task.meta["low"], self.task.meta["high"]
        number, text = int(self.task.answer), response.strip()
        self._guesses += 1
        guess = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else -1
        self._guessed = guess == number
        if self._guessed:
            return Reply(done=True)
        if self._guesses >= self.task.meta["guesses"]:
            return Reply(f"It was {number}.", done=True)
        if not low <= guess <= high:
            return Reply(f"A number from {low} to {high}, please.")
        if guess < number:
            self._low = max(self._low, guess + 1)
            return Reply("Higher.")
        self._high = min(self._high, guess - 1)
        return Reply("Lower.")

    def state(self) -> Progress:
        """Return what the reward sees of the game."""
        return Progress(self._guessed, self._guesses)

    def solve(self) -> str:
        """Return the middle of what is still possible or, beyond `skill`, any number of it."""
        rng = np.random.default_rng((int(self.task.id, 16), self._guesses))
        if rng.random() < self.skill:
            return str((self._low + self._high) // 2)
        return str(rng.integers(self._low, self._high + 1))


def make_guess_number(
    *,
    level: int = 4,
    spare: int = 0,
    skill: float = 1.0,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> GuessNumber:
    """Build the environment.

    Args:
        level: guesses that bisection may need, in [2, 6]; a range has 2^level - 1 numbers.
        spare: guesses beyond those; each one used costs 1 / (spare + 1).
        skill: how good `solve`, and so every demonstration, is: the share of turns in which it
            bisects, in [0, 1]; in the others it draws a number that is still possible.
        split: "train", "test" for the held-out games, or "all".
        seed: another seed is another order of games.
        size: the number of games; None for no end.
        **kwargs: for `LLMEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    if level not in LEVELS or spare < 0 or not 0 <= skill <= 1:
        raise TaskSourceError(
            f"level must be in [{LEVELS[0]}, {LEVELS[-1]}], spare 0 or more and skill in [0, 1]; "
            f"got {level}, {spare} and {skill}"
        )
    tasks = procedural(MakeGame(split, spare), seed, level=level, size=size)
    reward = kwargs.pop("reward", None) or InTime(spare, name="found")
    # A game ends by its own rule; this limit is only above that of every level.
    kwargs.setdefault("max_turns", LEVELS[-1] + spare)
    return GuessNumber(tasks, reward, skill=skill, **kwargs)
