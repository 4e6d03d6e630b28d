"""Probes: environments so small that a trainer which fails on one has a nameable fault.

`llmgym/ReverseTokens-v0`: three letters of a tiny alphabet, to be given back in reverse order.
"""

from functools import lru_cache
from itertools import product
from typing import Any
from zlib import crc32

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_split
from llmgym.data.tasks import TaskList
from llmgym.env import SingleTurnEnv
from llmgym.errors import TaskSourceError
from llmgym.messages import Task
from llmgym.rewards.rules import Exact

LETTERS = "abcdefgh"
HELD_OUT_ONE_IN = 8


def words(length: int, letters: str, split: Split) -> tuple[str, ...]:
    """Return every word of a length over an alphabet that belongs to a split, in a fixed order."""
    every = ["".join(letters_drawn) for letters_drawn in product(letters, repeat=length)]
    if split == "all":
        return tuple(every)
    held_out = {word for word in every if crc32(word.encode()) % HELD_OUT_ONE_IN == 0}
    return tuple(word for word in every if (word in held_out) == (split == "test"))


def make_reverse_tokens(
    *,
    length: int = 3,
    num_letters: int = 8,
    separator: str = " ",
    split: Split = "train",
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment: 1.0 for the letters in reverse order and nothing else, 0.0 otherwise.

    Args:
        length: letters in a prompt, in [1, 4].
        num_letters: size of the alphabet, in [2, 8].
        separator: stands between letters, so that each is a token of its own.
        split: "train", "test" for the held-out eighth of all words, or "all".
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range, or so few words that none is held out.
    """
    check_split(split)
    if not 1 <= length <= 4 or not 2 <= num_letters <= len(LETTERS):
        raise TaskSourceError(
            f"length must be in [1, 4] and num_letters in [2, 8]; got {length} and {num_letters}"
        )
    tasks = _reversals(length, num_letters, separator, split)
    reward = kwargs.pop("reward", None) or Exact()
    return SingleTurnEnv(tasks, reward, **kwargs)


@lru_cache(maxsize=16)
def _reversals(length: int, num_letters: int, separator: str, split: Split) -> TaskList:
    chosen = words(length, LETTERS[:num_letters], split)
    if not chosen:
        raise TaskSourceError(
            f"no word of {length} of {num_letters} letters is in the split {split}; raise length"
        )
    return TaskList(tuple(_reversal(word, separator) for word in chosen))


def _reversal(word: str, separator: str) -> Task:
    prompt, answer = separator.join(word), separator.join(reversed(word))
    return Task(
        id=task_id(prompt),
        prompt=prompt,
        answer=answer,
        solution=answer,
        source="llmgym/ReverseTokens-v0",
    )
