"""Tools of tests, at the top of a module so that they pickle and start in a process."""

import os
import time
from typing import Literal

from llmgym.messages import Reply


def add(a: int, b: int = 0) -> int:
    """Add two integers.

    Args:
        a: the first one.
        b: the second one.
    """
    return a + b


def describe(text: str, style: Literal["short", "long"], tags: list[str] | None = None) -> str:
    """Describe a text.

    In any language.

    Args:
        text: what is described, on as many
            lines as it takes.
        style: how.
        tags: words.

    Returns:
        A description.
    """
    return f"{style}:{text}:{tags}"


def fail(message: str) -> str:
    """Raise an error."""
    raise KeyError(message)


def leave(code: int) -> str:
    """End the process."""
    raise SystemExit(code)


def abort() -> str:
    """End the process at once."""
    os._exit(3)


def sleep(seconds: float) -> str:
    """Wait."""
    time.sleep(seconds)
    return "awake"


def process_id() -> int:
    """Return the id of the process."""
    return os.getpid()


def submit(answer: str) -> Reply:
    """End the episode; "right" pays."""
    return Reply("noted", done=True, reward=0.5 if answer == "right" else 0.0)


def untyped(a, b: int):
    """Add."""
    return a + b


def of_bytes(a: bytes) -> str:
    """Read bytes."""
    return a.hex()


def many(*a: int) -> int:
    """Add."""
    return sum(a)


async def later(a: int) -> int:
    """Return it later."""
    return a
