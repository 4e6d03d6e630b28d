"""Reads the games of GEM: ids such as `gem/Mastermind-easy-v0`.

A response is read by the rules of the prompt, mostly as what is inside of a box of LaTeX. After
each turn comes what the game says, and its board. GEM's data sets of mathematics, code and
questions are downloads, and its copies of reasoning-gym have a reader of their own.
"""

from functools import partial
from typing import Any, final

from llmgym.adapters.libraries import library_of
from llmgym.adapters.random_state import OwnRandom
from llmgym.adapters.turn_game import Turn, TurnGame, seeds_of
from llmgym.data.splits import Split, check_split

MAX_TURNS = 100
"""Above the limit of every game, which GEM counts itself."""
NAMES = (
    *(f"GuessTheNumber-{kind}-v0" for kind in ("easy", "hard", "random")),
    *(f"Mastermind-{kind}-v0" for kind in ("easy", "hard", "random")),
    *(f"Minesweeper-{kind}-v0" for kind in ("easy", "hard", "random")),
    *(f"FifteenPuzzle-{kind}-v0" for kind in ("easy", "hard")),
    *(f"Sudoku-{kind}-v0" for kind in ("easy", "hard", "random")),
    *(f"TowerofHanoi-{kind}-v0" for kind in ("easy", "hard", "random")),
    *(f"Game2048-{kind}-v0" for kind in ("easy", "hard", "extreme-hard", "random")),
    "Sokoban-easy-v0",
)
"""Games that are read; GEM itself writes the version in the middle, as Sudoku-v0-easy."""
NO_WORDS = "it needs lists of words that NLTK downloads"
BLOCKED = {
    f"{game}-{kind}-v0": NO_WORDS
    for game in ("Wordle", "Hangman", "Crosswords", "WordSearch")
    for kind in ("easy", "hard", "random")
} | {
    "FifteenPuzzle-random-v0": "its constructor raises TypeError",
    "Sokoban-hard-v0": "a reset takes minutes",
    "Sokoban-random-v0": "a reset takes minutes",
}
"""Games that are not read, with the reason, as found in version 0.1.0."""


def library_id(name: str, prefix: str = "") -> str:
    """Return the library's own id of a name: Sudoku-easy-v0 is Sudoku-v0-easy there."""
    game, _, kind = name.removesuffix("-v0").partition("-")
    return f"{prefix}{game}-v0-{kind}" if kind else f"{prefix}{game}-v0"


@final
class GemGame:
    """One game of GEM; its board is in `info["suffix"]`."""

    def __init__(self, name: str) -> None:
        library_of("gem", "envs")  # registers the games
        self._game: Any = library_of("gem").make(library_id(name, "game:"))

    def begin(self, seed: int) -> str:
        """Start a game and return its rules and its board."""
        text, info = self._game.reset(seed=seed)
        return _with_board(text, info)

    def turn(self, response: str) -> Turn:
        """Take a response."""
        text, reward, terminated, truncated, info = self._game.step(response)
        return Turn(_with_board(text, info), float(reward), bool(terminated), bool(truncated))

    def solve(self) -> None:
        """Return None: GEM has no player."""
        return None


def _with_board(text: str, info: dict[str, Any]) -> str:
    return "\n".join(filter(None, [text, info.get("suffix")]))


def make(name: str, *, split: Split = "train", size: int | None = None, **kwargs: Any) -> TurnGame:
    """Build the environment of a game; its rewards are GEM's, without known bounds.

    Args:
        name: of the game.
        split: "train", "test" for the first 1000 seeds, or "all".
        size: the number of games; None for no end.
        **kwargs: for `LLMEnv`.

    Raises:
        MissingExtraError: the library is not installed.
    """
    check_split(split)
    with OwnRandom(0):  # its constructor draws
        GemGame(name)
    kwargs.setdefault("max_turns", MAX_TURNS)
    kwargs.setdefault("reward_bounds", (float("-inf"), float("inf")))
    return TurnGame(seeds_of(f"gem/{name}", split, size), partial(GemGame, name), **kwargs)
