"""Registers the ids of the libraries that are installed, and says what the others need."""

from llmgym.adapters import READERS
from llmgym.adapters.libraries import is_installed
from llmgym.addresses import load
from llmgym.errors import MissingExtraError, PluginError
from llmgym.registry import register


def register_readers() -> None:
    """Register every id of each library that is installed; none of them is imported."""
    for reader in READERS:
        if is_installed(reader):
            for name in load(f"{reader.module}:NAMES"):
                register(
                    f"{reader.namespace}/{name}",
                    f"{reader.module}:make",
                    tags=("reader", reader.namespace),
                    name=name,
                )


def check_readable(id: str) -> None:
    """Raise what is wrong with an id of a reader's namespace that is not registered.

    Raises:
        MissingExtraError: its library is not installed.
        PluginError: the id is on the reader's list of those that are not read, with the reason.
    """
    namespace, _, name = id.partition("/")
    for reader in READERS:
        if reader.namespace != namespace:
            continue
        if not is_installed(reader):
            raise MissingExtraError(f"{id} is read from {reader.package}: {reader.command}")
        blocked = load(f"{reader.module}:BLOCKED")
        if name in blocked:
            raise PluginError(f"{id} is not read: {blocked[name]}")
