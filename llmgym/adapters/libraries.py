"""Imports the library of a reader by its name, or says what to install."""

import contextlib
import io
import logging
import threading
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

from llmgym.adapters import READERS, Reader
from llmgym.addresses import load_module
from llmgym.errors import MissingExtraError

logger = logging.getLogger("llmgym.adapters")

_OUTPUT = threading.RLock()
"""Standard output is replaced by one thread at a time."""


@contextlib.contextmanager
def printed_to_log() -> Iterator[None]:
    """Log what a library prints inside."""
    output = io.StringIO()
    with _OUTPUT:
        try:
            with contextlib.redirect_stdout(output):
                yield
        finally:
            if output.getvalue():
                logger.debug("a library printed %s", output.getvalue().strip())


def is_installed(reader: Reader) -> bool:
    """Return whether the library of a reader is there, without importing it; a folder is none."""
    try:
        spec = find_spec(reader.package)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


@lru_cache(maxsize=64)
def library_of(namespace: str, submodule: str = "") -> ModuleType:
    """Import the library of a reader, or a module of it.

    Args:
        namespace: of the reader.
        submodule: below the library's own module; empty for that module.

    Raises:
        MissingExtraError: the library is not installed.
        PluginError: the library breaks while it is imported.
    """
    (reader,) = (reader for reader in READERS if reader.namespace == namespace)
    if not is_installed(reader):
        raise MissingExtraError(f"{namespace} ids need {reader.package}: {reader.command}")
    return load_module(".".join(filter(None, [reader.package, submodule])))
