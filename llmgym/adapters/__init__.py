"""Readers of other libraries' environments, an extra and a namespace of ids each."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A library whose environments are read.

    Attributes:
        namespace: of its ids, as in `reasoning_gym/chain_sum`.
        package: the name that it is imported by.
        extra: of this package, which installs it; empty where its versions exclude others of ours.
        install: what to install where there is no extra.
        versions: the versions that were tried.
    """

    namespace: str
    package: str
    extra: str
    versions: str
    install: str = ""

    @property
    def module(self) -> str:
        """The module that reads it; it has `NAMES`, `BLOCKED` and `make`."""
        return f"llmgym.adapters.{self.namespace}"

    @property
    def command(self) -> str:
        """The command that installs the library."""
        return f'pip install "{self.install or f"llmgym-rl[{self.extra}]"}"'


READERS = (
    Reader(
        namespace="reasoning_gym",
        package="reasoning_gym",
        extra="reasoning-gym",
        versions="0.1.25",
    ),
    Reader(namespace="gem", package="gem", extra="gem", versions="0.1.0"),
    Reader(namespace="textarena", package="textarena", extra="textarena", versions="0.7.4"),
    Reader(namespace="minigrid", package="minigrid", extra="minigrid", versions="3.2.0"),
)
