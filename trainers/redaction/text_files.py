"""Text files of a run: without secrets, for its user alone, and never seen half-written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.redaction.redact import without_values


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the path in an error of the system that names none, as of a disk that fills up."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all; known secrets are left out.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with naming(file):
            draft.write_text(without_values(text), encoding="utf-8")
            draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def append(file: Path, text: str) -> None:
    """Append to a file, or begin it; known secrets are left out.

    Raises:
        OSError: it cannot be written.
    """
    with naming(file), file.open("a", encoding="utf-8") as stream:
        stream.write(without_values(text))


@contextmanager
def private() -> Iterator[None]:
    """Let this process, and those it starts, make files that its user alone can read."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
