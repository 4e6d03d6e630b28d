"""The lock of a run folder: one start at a time, wherever starts come from.

Its owner touches it every few seconds. On the owner's host its process is asked for. Elsewhere the
number of a process means nothing and clocks differ, so a lock is watched by one's own clock: one
that moves has an owner, one that keeps still is taken over.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

from trainers.errors import CheckpointError
from trainers.run_dir.record import is_alive

BEATS_EVERY = 10.0
"""Seconds between two touches by the owner."""
STILL_FOR = 40.0
"""Seconds without a touch after which a lock of another host has no owner: three may be late."""
LOCK_POLL_SECONDS = 1.0
"""Seconds between two looks at it. Other ranks wait for one look at a time, never for all."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A lock as it was at one look: it moved if any of this is other at the next."""

    text: str
    touched_ns: int

    @property
    def owner(self) -> tuple[str, int]:
        """Host and process; of a lock that is damaged or still being written, none that is."""
        try:
            owner = json.loads(self.text)
            return str(owner["host"]), int(owner["pid"])
        except (ValueError, KeyError, TypeError):
            return "an unknown host", 0


@final
class RunLock:
    """The lock of one start; rank 0 alone takes it.

    Args:
        file: the lock.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": secrets.token_hex(8)}
        self._text = json.dumps(owner)
        self._first: _Seen | None = None
        self._since = 0.0
        self._is_over = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="run.lock")

    def is_free(self) -> bool:
        """Look once; False: look again. A stale lock is named and removed.

        Raises:
            CheckpointError: another start holds the lock.
        """
        if self._first is not None:
            time.sleep(LOCK_POLL_SECONDS)
        seen = self._look()
        if seen is None:
            return True
        host, pid = seen.owner
        if self._first is None and host == socket.gethostname():
            # Our own number was another's: in a container every start is process 1.
            if pid != os.getpid() and is_alive(pid):
                raise self._in_use(seen)
            self._remove(seen, f"process {pid} is gone")
            return True
        if self._first is None:
            self._first, self._since = seen, time.monotonic()
            _log.warning(
                "%s is of process %d on %s: watched for %g s, to see whether it lives",
                self.file, pid, host, STILL_FOR,
            )  # fmt: skip
        elif seen != self._first:
            raise self._in_use(seen)
        elif time.monotonic() - self._since >= STILL_FOR:
            self._remove(seen, f"process {pid} on {host} did not touch it for {STILL_FOR:g} s")
            return True
        return False

    def take(self) -> None:
        """Write the lock, which must not be there.

        Raises:
            CheckpointError: another start was faster.
        """
        try:
            descriptor = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError as error:
            raise self._taken() from error
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(self._text)

    def keep(self) -> None:
        """Touch it from now on, until it is released."""
        self._beats.start()

    def release(self) -> None:
        """Remove it, if it still is that of this start."""
        self._is_over.set()
        if self._beats.is_alive():
            self._beats.join()
        if self._is_ours():
            self.file.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._is_over.wait(BEATS_EVERY):
            try:
                if not self._is_ours():
                    _log.warning(
                        "%s is no longer of this start: another one took it over, or a person "
                        "removed it. Two in one folder spoil each other's files: stop one.",
                        self.file,
                    )
                    return
                os.utime(self.file)
            except OSError as error:  # a file server that is away: tried again at the next beat
                _log.warning("could not touch %s: %s", self.file, error)

    def _look(self) -> _Seen | None:
        """Return the lock, None if there is none; to open it makes a file server look anew."""
        try:
            with self.file.open(encoding="utf-8", errors="replace") as stream:
                return _Seen(stream.read(), os.fstat(stream.fileno()).st_mtime_ns)
        except FileNotFoundError:
            return None

    def _is_ours(self) -> bool:
        seen = self._look()
        return seen is not None and seen.text == self._text

    def _remove(self, stale: _Seen, why: str) -> None:
        """Remove a lock that has no owner, unless another start that watched it was faster."""
        guard = self.file.with_suffix(".taking")
        try:
            guard.touch(exist_ok=False)
        except FileExistsError as error:
            raise CheckpointError(f"{self._taken()} If not, remove {guard}.") from error
        try:
            if self._look() != stale:
                raise self._taken()
            _log.warning("%s is stale: %s; taken over", self.file, why)
            self.file.unlink()
        finally:
            guard.unlink()

    def _taken(self) -> CheckpointError:
        return CheckpointError(f"{self.file.parent} was taken by another run just now.")

    def _in_use(self, seen: _Seen) -> CheckpointError:
        host, pid = seen.owner
        return CheckpointError(
            f"{self.file.parent} is in use by process {pid} on {host}. Wait for it or stop it; if "
            f"it is gone, remove {self.file}."
        )
