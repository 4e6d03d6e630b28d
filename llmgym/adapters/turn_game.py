"""A game of another library as an environment of several turns: what readers of games share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from llmgym.adapters.libraries import printed_to_log
from llmgym.adapters.random_state import OwnRandom
from llmgym.data.rows import task_id
from llmgym.data.splits import Split
from llmgym.env import LLMEnv
from llmgym.messages import Completion, Reply, Task

TEST_SEEDS = 1000
"""The first seeds are held out; those that are trained on come after them."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a game says and pays for a response, and whether it ended or was cut."""

    text: str
    reward: float
    terminated: bool
    truncated: bool


class Game(Protocol):
    """One game, which may draw from Python's and NumPy's global generators."""

    def begin(self, seed: int) -> str:
        """Start a game and return its first text."""
        ...

    def turn(self, response: str) -> Turn:
        """Take a response."""
        ...

    def solve(self) -> str | None:
        """Return a perfect response; None where none is known."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Seeds:
    """The seeds of one split, as a task source without end for training."""

    source: str
    split: Split
    size: int | None
    prompt: str = ""

    def __len__(self) -> int:
        """Return how many there are; `TypeError` where there is no end."""
        if self.size is None:
            raise TypeError("the seeds to train on have no end: see num_tasks()")
        return self.size

    def __getitem__(self, index: int) -> Task:
        """Return the task of a seed."""
        if index < 0 or (self.size is not None and index >= self.size):
            raise IndexError(f"task {index} is not in [0, {self.size})")
        seed = index + (TEST_SEEDS if self.split == "train" else 0)
        content = f"{self.source} {seed}"
        prompt = self.prompt or content
        return Task(id=task_id(content), prompt=prompt, source=self.source, meta={"seed": seed})


def seeds_of(source: str, split: Split, size: int | None, prompt: str = "") -> Seeds:
    """Return the seeds of a split: those that are held out are 1000 at most."""
    held_out = TEST_SEEDS if size is None else min(size, TEST_SEEDS)
    return Seeds(source, split, held_out if split == "test" else size, prompt)


@final
class TurnGame(LLMEnv):
    """A game of several turns, each with a random state of its own.

    Args:
        tasks: seeds, as `meta["seed"]`.
        game: makes a game; it is called at each reset.
        **kwargs: for `LLMEnv`.
    """

    def __init__(
        self, tasks: Seeds | Sequence[Task], game: Callable[[], Game], **kwargs: Any
    ) -> None:
        super().__init__(tasks, **kwargs)
        self._make_game = game
        self._game: Game | None = None
        self._random = OwnRandom(0)

    def prompt(self, task: Task) -> str:
        """Begin a new game."""
        seed = int(task.meta["seed"])
        self._random = OwnRandom(seed)
        with self._random, printed_to_log():
            self._game = self._make_game()
            return self._game.begin(seed)

    def reply(self, response: Completion) -> Reply:
        """Take a turn; a game that is terminated and truncated at once is terminated."""
        assert self._game is not None
        with self._random, printed_to_log():
            turn = self._game.turn(str(response))
        return Reply(turn.text, done=turn.terminated, reward=turn.reward, truncated=turn.truncated)

    def solve(self) -> str | None:
        """Return a perfect response; None where the library knows none."""
        return None if self._game is None else self._game.solve()
