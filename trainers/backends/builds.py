"""What builds of extensions left behind: DeepSpeed's Adam is built at its first use. No torch.

A build holds a file named `lock`. One that was killed leaves it, and every later start waits for it
without end, even where the library is there.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from trainers.errors import BackendError

STALE_SECONDS = 600.0
"""Longer than any of these builds takes; a younger lock may be that of one that is under way."""


def build_root() -> Path:
    """Return the folder that extensions are built in."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", cache / "torch_extensions"))


def stale_locks() -> list[Path]:
    """Return the locks that no build can hold any more."""
    now = time.time()
    locks = sorted(build_root().glob("*/lock")) + sorted(build_root().glob("*/*/lock"))
    found = []
    for lock in locks:
        with suppress(FileNotFoundError):  # a build that ends just now
            found += [lock] * (now - lock.stat().st_mtime > STALE_SECONDS)
    return found


def check_locks() -> None:
    """Refuse to wait for a build that is over.

    Raises:
        BackendError: names each file to remove.
    """
    if locks := stale_locks():
        raise BackendError(
            "a build of an extension was killed, and its lock would let this start wait without "
            f"end. If nothing is being built:\nrm {' '.join(map(str, locks))}"
        )
