"""Games in which one of several candidates is hidden, and each guess is answered truthfully.

Mastermind, Wordle and TwentyQuestions are these games. A task holds the candidates and the hidden
one in its `meta`, with `par`, the turns that `solve` may need, and `turns`, those that there are.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, final

from llmgym.env import LLMEnv
from llmgym.envs.games import Progress
from llmgym.messages import Completion, Reply, Task


class Deduction(LLMEnv, ABC):
    """A game of guesses and answers about a hidden candidate; arguments are those of `LLMEnv`."""

    _left: tuple[Any, ...] = ()
    _guesses = 0
    _guessed = False

    @abstractmethod
    def candidates(self, task: Task) -> tuple[Any, ...]:
        """Return everything that may be hidden."""

    @abstractmethod
    def read(self, text: str) -> Any:  # noqa: ANN401 - a guess is the game's own
        """Return the guess that a response is; None for another text."""

    @abstractmethod
    def answer(self, guess: Any, hidden: Any) -> str:  # noqa: ANN401 - as above
        """Return the answer to a guess; empty where it names what is hidden."""

    @abstractmethod
    def best(self, left: tuple[Any, ...]) -> Any:  # noqa: ANN401 - as above
        """Return a guess that suits what is still possible."""

    @abstractmethod
    def shown(self, guess: Any) -> str:  # noqa: ANN401 - as above
        """Return a guess, or what is hidden, as a response says it."""

    @abstractmethod
    def expects(self) -> str:
        """Return the answer to a response that is no guess."""

    @final
    def prompt(self, task: Task) -> str:
        """Begin a game: every candidate is still possible."""
        self._left = self.candidates(task)
        self._guesses, self._guessed = 0, False
        return str(task.prompt)

    @final
    def reply(self, response: Completion) -> Reply:
        """Answer a guess; what is no guess costs a turn as well."""
        hidden, guess = self.task.answer, self.read(str(response))
        self._guesses += 1
        told = self.expects() if guess is None else self.answer(guess, hidden)
        if not told:
            self._guessed = True
            return Reply(done=True)
        if guess is not None:
            self._left = tuple(c for c in self._left if self.answer(guess, c) == told)
        if self._guesses >= int(self.task.meta["turns"]):
            return Reply(f"It was {self.shown(hidden)}.", done=True)
        return Reply(told)

    @final
    def state(self) -> Progress:
        """Return what the reward sees of the game."""
        return Progress(self._guessed, self._guesses)

    @final
    def solve(self) -> str:
        """Return a guess that finds what is hidden within the turns of `par`."""
        return self.shown(self.best(self._left))


def narrowest(
    guesses: Sequence[Any],
    left: Sequence[Any],
    answer: Any,  # noqa: ANN401 - a method of a game
) -> Any:  # noqa: ANN401 - a guess is the game's own
    """Return the first guess whose answers leave the fewest candidates in the worst case."""

    def most(guess: Any) -> tuple[int, bool]:  # noqa: ANN401
        groups: dict[str, int] = defaultdict(int)
        for candidate in left:
            groups[answer(guess, candidate)] += 1
        return max(groups.values()), "" not in groups

    return min(guesses, key=most)


def turns_needed(
    game: Deduction,
    left: tuple[Any, ...],
) -> int:
    """Return the turns that the best guesses of a game need in the worst case."""
    guess = game.best(left)
    groups: dict[str, list[Any]] = defaultdict(list)
    for candidate in left:
        groups[game.answer(guess, candidate)].append(candidate)
    rest = (turns_needed(game, tuple(group)) for told, group in groups.items() if told)
    return 1 + max(rest, default=0)
