"""Reads the games of TextArena that one player plays: ids such as `textarena/Sudoku-easy-v0`.

The library's own environments without its wrappers: a message per turn, and what the game pays at
its end. A response is read by the rules of the prompt, usually in square brackets.
"""

from functools import partial
from typing import Any, final

from llmgym.adapters.libraries import library_of
from llmgym.adapters.turn_game import Turn, TurnGame, seeds_of
from llmgym.data.splits import Split, check_split
from llmgym.errors import EnvContractError

MAX_TURNS = 200
"""At least the limit of every game, which TextArena counts itself."""
_NAMES = """
    2048-v0-ultra-easy 2048-v0-mega-easy 2048-v0-super-easy 2048-v0-very-easy 2048-v0-easy 2048-v0
    2048-v0-hard 2048-v0-very-hard 2048-v0-extreme 2048-v0-3x3 2048-v0-5x5 2048-v0-6x6 2048-v0-8x8
    2048-v0-10x10 Bandit-v0 Bandit-v0-hard Blackjack-v0 Blackjack-v0-long Crosswords-v0
    Crosswords-v0-hardcore FifteenPuzzle-v0 FrozenLake-v0 FrozenLake-v0-random
    FrozenLake-v0-hardcore GuessTheNumber-v0 GuessTheNumber-v0-hardcore LightsOut-v0 LogicPuzzle-v0
    LogicPuzzle-v0-hard Mastermind-v0 Mastermind-v0-hard Mastermind-v0-extreme Minesweeper-v0
    Minesweeper-v0-small Minesweeper-v0-medium Minesweeper-v0-hard PegJump-v0 RushHour-v0
    Secretary-v0 Secretary-v0-long Set-v0 Sokoban-v0 Sudoku-v0-very-easy
    Sudoku-v0-easy Sudoku-v0 Sudoku-v0-medium TowerOfHanoi-v0 TowerOfHanoi-v0-medium
    TowerOfHanoi-v0-hard TowerOfHanoi-v0-hardcore TowerOfHanoi-v0-extreme
"""
NO_WORDS = "it needs lists of words that NLTK downloads"
NO_MODEL = "it asks a model of OpenRouter, which costs money and is never the same"
NO_NUMBER = "it pays a sentence, and no number, for a bad action"
_BLOCKED = {
    "GuessWho-v0": NO_MODEL,
    "Klondike-v0": "the library's file has a syntax error",
    "Sokoban-v0-medium": "a reset takes seconds",
    "Sudoku-v0-hard": "a reset takes seconds",
    **dict.fromkeys(("Countdown-v0", "Cryptarithm-v0", "ThreeCardMonte-v0"), NO_NUMBER),
    "Slitherlink-v0": NO_NUMBER,
    **dict.fromkeys(("TwentyQuestions-v0", "TwentyQuestions-v0-hardcore"), NO_MODEL),
    **dict.fromkeys(("Hangman-v0", "Hangman-v0-hardcore"), NO_WORDS),
    **dict.fromkeys(("WordLadder-v0", "WordLadder-v0-medium", "WordLadder-v0-hard"), NO_WORDS),
    **dict.fromkeys(("Wordle-v0", "Wordle-v0-hardcore", "Wordle-v0-long"), NO_WORDS),
    **dict.fromkeys(("WordSearch-v0", "WordSearch-v0-hardcore"), NO_WORDS),
}


def our_name(library_id: str) -> str:
    """Return our name of the library's id, with the version at its end: Sudoku-easy-v0."""
    game, _, kind = library_id.partition("-v0")
    return f"{game}{kind}-v0"


_IDS = {our_name(library_id): library_id for library_id in _NAMES.split()}
NAMES = tuple(_IDS)
"""Games that are read."""
BLOCKED = {our_name(library_id): reason for library_id, reason in _BLOCKED.items()}
"""Games of one player that are not read, with the reason, as found in version 0.7.4."""


@final
class TextArenaGame:
    """One game of TextArena, without its wrappers."""

    def __init__(self, name: str) -> None:
        library = library_of("textarena")
        self._name = name
        self._action = library.ObservationType.PLAYER_ACTION
        self._game: Any = library.make(f"{_IDS[name]}-raw")

    def begin(self, seed: int) -> str:
        """Start a game of one player and return its rules."""
        self._game.reset(num_players=1, seed=seed)
        return self._told()

    def turn(self, response: str) -> Turn:
        """Take a response; the reward comes with the end.

        Raises:
            EnvContractError: the game pays something that is no number.
        """
        done, _ = self._game.step(response)
        text = self._told()
        if not done:
            return Turn(text, 0.0, False, False)
        rewards, _ = self._game.close()
        reward = (rewards or {}).get(0)
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise EnvContractError(f"textarena/{self._name} pays {reward!r}, which is no number")
        return Turn(text, float(reward), True, False)

    def solve(self) -> None:
        """Return None: TextArena has no player."""
        return None

    def _told(self) -> str:
        """Return the new messages of the game; the response is known already."""
        _, messages = self._game.get_observation()
        return "\n".join(str(text) for _, text, kind in messages if kind is not self._action)


def make(name: str, *, split: Split = "train", size: int | None = None, **kwargs: Any) -> TurnGame:
    """Build the environment of a game; its rewards are TextArena's, without known bounds.

    Args:
        name: of the game.
        split: "train", "test" for the first 1000 seeds, or "all".
        size: the number of games; None for no end.
        **kwargs: for `LLMEnv`.

    Raises:
        MissingExtraError: the library is not installed.
    """
    check_split(split)
    TextArenaGame(name)
    kwargs.setdefault("max_turns", MAX_TURNS)
    kwargs.setdefault("reward_bounds", (float("-inf"), float("inf")))
    tasks = seeds_of(f"textarena/{name}", split, size)
    return TurnGame(tasks, partial(TextArenaGame, name), **kwargs)
