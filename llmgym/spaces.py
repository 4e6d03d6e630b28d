"""Spaces of text, dialogues and tokens, and how a vector environment batches them.

Gymnasium's own `Text` holds no space, newline or empty string and cannot be batched in useful time.
These hold any text, always sample, and are equal whenever they hold the same kind of thing: caps
belong to an environment, so that different environments share one vector. Nothing here flattens.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, final

import numpy as np
from gymnasium import Space
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from gymnasium.wrappers.utils import create_zero_array

ROLES = ("system", "developer", "user", "assistant", "tool")

# What samples are made of: ASCII, markup, accents, CJK, an emoji outside the basic plane, newlines.
_PIECES = (
    *(
        "the",
        "answer",
        "is",
        "42",
        "-7.5",
        " ",
        "  ",
        "\n",
        "\t",
        "<think>",
        "\\boxed{3}",
        '{"a": 1}',
    ),
    *("caf\u00e9", "na\u00efve", "\u4f60\u597d", "\u3053\u3093", "\U0001f600", "\u0416", "\x00"),
)


class _TextSpace(Space[Any]):
    """What the spaces here share: no shape, never flattened, equal by kind."""

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no fixed width."""
        return False

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@final
class Text(_TextSpace):
    """Any string, the empty one included.

    Args:
        max_length: longest string a member may be, in characters; None means no cap.
        seed: of the samples.
    """

    def __init__(self, max_length: int | None = None, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.max_length = max_length

    def sample(self, mask: None = None, probability: None = None) -> str:
        """Return a few words of mixed scripts; masks mean nothing for text and must be None."""
        _refuse_masks(mask, probability)
        count = int(self.np_random.integers(0, 13))
        text = "".join(_PIECES[i] for i in self.np_random.integers(0, len(_PIECES), size=count))
        return text[: self.max_length]

    def contains(self, x: object) -> bool:
        """Return True for any `str` within the cap."""
        return isinstance(x, str) and (self.max_length is None or len(x) <= self.max_length)

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        """Return plain strings."""
        return [str(text) for text in sample_n]

    def from_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        """Return what `to_jsonable` was given."""
        return list(sample_n)


@final
class Chat(_TextSpace):
    """A dialogue: a tuple of message dicts, each with a `role` and a `content`."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self._text = Text()

    def sample(self, mask: None = None, probability: None = None) -> tuple[dict[str, Any], ...]:
        """Return a short dialogue that begins with a user; masks must be None."""
        _refuse_masks(mask, probability)
        self._text._np_random = self.np_random
        roles = ("user", "assistant") * int(self.np_random.integers(1, 4))
        return tuple({"role": role, "content": self._text.sample()} for role in roles[:-1])

    def contains(self, x: object) -> bool:
        """Return True for a tuple of dicts with a known role and text as content."""
        return isinstance(x, tuple) and all(_is_message(message) for message in x)

    def to_jsonable(self, sample_n: Iterable[tuple[dict[str, Any], ...]]) -> list[list[dict]]:
        """Return lists of message dicts."""
        return [[dict(message) for message in chat] for chat in sample_n]

    def from_jsonable(self, sample_n: Iterable[Sequence[Mapping]]) -> list[tuple[dict, ...]]:
        """Return what `to_jsonable` was given."""
        return [tuple(dict(message) for message in chat) for chat in sample_n]


@final
class Ragged(_TextSpace):
    """The batch of n samples of one space: a tuple; None marks an idle slot.

    Args:
        space: what every slot holds.
        n: number of slots.
        seed: of the samples.
    """

    def __init__(self, space: Space[Any], n: int, seed: int | None = None) -> None:
        self.space = space
        self.n = n
        super().__init__(seed=seed)

    def seed(self, seed: int | None = None) -> int:
        """Seed this space and the one it holds."""
        used = super().seed(seed)
        self.space.seed(int(self.np_random.integers(2**31)))
        return used

    def sample(self, mask: None = None, probability: None = None) -> tuple[Any, ...]:
        """Return one sample a slot; masks must be None."""
        _refuse_masks(mask, probability)
        self.np_random  # noqa: B018 - the first use seeds this space and the one it holds
        return tuple(self.space.sample() for _ in range(self.n))

    def contains(self, x: object) -> bool:
        """Return True for a tuple or list of n members, idle slots included."""
        if not isinstance(x, tuple | list) or len(x) != self.n:
            return False
        return all(item is None or item in self.space for item in x)

    def to_jsonable(self, sample_n: Iterable[Sequence[Any]]) -> list[list[Any]]:
        """Return one list a batch; idle slots stay None."""
        return [
            [None if item is None else self.space.to_jsonable([item])[0] for item in batch]
            for batch in sample_n
        ]

    def from_jsonable(self, sample_n: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Return what `to_jsonable` was given."""
        return [
            tuple(None if x is None else self.space.from_jsonable([x])[0] for x in batch)
            for batch in sample_n
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ragged) and (other.space, other.n) == (self.space, self.n)

    def __hash__(self) -> int:
        return hash((Ragged, self.n))

    def __repr__(self) -> str:
        return f"Ragged({self.space!r}, {self.n})"


def _is_message(x: object) -> bool:
    return isinstance(x, dict) and x.get("role") in ROLES and isinstance(x.get("content"), str)


def _refuse_masks(mask: None, probability: None) -> None:
    if mask is not None or probability is not None:
        raise ValueError("A space of text has no mask and no probabilities; pass None for both")


@batch_space.register(_TextSpace)
def _batch_space(space: _TextSpace, n: int = 1) -> Ragged:
    return Ragged(deepcopy(space), n)  # so that seeding the batch leaves the slot's own space alone


@iterate.register(_TextSpace)
def _iterate(space: _TextSpace, items: Iterable[Any]) -> Iterator[Any]:
    return iter(items)


@concatenate.register(_TextSpace)
def _concatenate(space: _TextSpace, items: Iterable[Any], out: object) -> tuple[Any, ...]:
    return tuple(items)


@create_empty_array.register(_TextSpace)
def _create_empty_array(space: _TextSpace, n: int = 1, fn: object = np.zeros) -> tuple[None, ...]:
    return (None,) * n


@create_zero_array.register(Text)
def _zero_text(space: Text) -> str:
    return ""


@create_zero_array.register(Chat)
def _zero_chat(space: Chat) -> tuple[()]:
    return ()


@create_zero_array.register(Ragged)
def _zero_ragged(space: Ragged) -> tuple[Any, ...]:
    return tuple(create_zero_array(space.space) for _ in range(space.n))
