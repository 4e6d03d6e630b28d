"""What builds of extensions left behind: DeepSpeed's Adam is built at its first use. No torch.

A build holds a file named `lock` open. One that was killed leaves it, and every later start waits
for it without end, even where the library is there.
"""

import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from trainers.errors import BackendError

STALE_SECONDS = 600.0
"""Longer than any of these builds takes. A younger lock may be held by another machine."""

_LOOK_SECONDS = 0.5
_log = logging.getLogger(__name__)


def build_root() -> Path:
    """Return the folder that extensions are built in."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", cache / "torch_extensions"))


def stale_locks() -> list[Path]:
    """Return the locks that no build can hold any more."""
    return [lock for lock, age in _not_held_here().items() if age > STALE_SECONDS]


def check_locks() -> None:
    """Refuse to wait for a build that is over.

    A lock that no process here holds is another machine's, where the folder is shared, or a killed
    build's: it is waited for until it is gone or stale.

    Raises:
        BackendError: names each file to remove.
    """
    is_told = False
    while ages := _not_held_here():
        if stale := [lock for lock, age in ages.items() if age > STALE_SECONDS]:
            raise BackendError(
                "a build of an extension was killed, and its lock would let this start wait "
                f"without end. If nothing is being built:\n{_removal(stale)}"
            )
        if not is_told:
            _log.warning(
                "waiting up to %.0f s for builds that are not of this machine. Where they were "
                "killed:\n%s",
                STALE_SECONDS - max(ages.values()),
                _removal(ages),
            )
            is_told = True
        time.sleep(_LOOK_SECONDS)


def _removal(locks: Iterable[Path]) -> str:
    """Return the command that removes locks."""
    return f"rm {' '.join(map(str, locks))}"


def _not_held_here() -> dict[Path, float]:
    """Return the locks that no process of this machine has open, and their ages in seconds."""
    locks = sorted(build_root().glob("*/lock")) + sorted(build_root().glob("*/*/lock"))
    ages = {}
    for lock in locks:
        with suppress(FileNotFoundError):  # a build that ends just now
            ages[lock] = time.time() - lock.stat().st_mtime
    held = _open_files() if ages else set()
    alone = {lock: age for lock, age in ages.items() if lock.resolve() not in held}
    return {lock: age for lock, age in alone.items() if lock.exists()}  # a look takes a while


def _open_files() -> set[Path]:
    """Return the files that processes of this machine have open, as far as this one may see."""
    held = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # ended, or another user's
            held.add(Path(link).readlink())
    return held
