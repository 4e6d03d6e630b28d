"""What ends a rank whose main thread cannot: over NCCL it waits inside CUDA, deaf to Python.

Over gloo a wait ends with the connection. NCCL waits for its time-out, and torch then aborts the
process without a word. So every rank has a thread that touches a file beside its log, looks at the
file of its neighbour, and reads farewells:

    a rank raises   ->  it leaves a farewell          ->  the others end
    a rank is dead  ->  its file does not change      ->  its neighbour leaves one for it: all end
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

from trainers.distributed import World, current_phase
from trainers.runner.farewells import Farewell, heard, leave, told

BEAT_SECONDS = 5.0
"""Between two touches."""
STILL_SECONDS = 300.0
"""A file that has not changed for so long is a dead rank's: a library that holds Python's lock is
done by then, and what a shared filesystem remembers of a file is new."""
PATIENCE_SECONDS = 20.0
"""What the main thread has to end by itself, once there is a farewell."""

_log = logging.getLogger(__name__)


@final
class Watch(threading.Thread):
    """Looks after one rank and its neighbour until it is told to `end`.

    Args:
        logs: the folder of this start, which all ranks see.
        world: this process among its peers.
        hosts: of each rank.
        timeout_seconds: how long ranks wait for each other.
        fail: called with the reason, before the process ends.
    """

    def __init__(
        self,
        logs: Path,
        world: World,
        hosts: Sequence[str],
        timeout_seconds: float,
        *,
        fail: Callable[[str], None],
    ) -> None:
        super().__init__(daemon=True, name="watch")
        self._logs, self._rank, self._hosts = logs, world.rank, hosts
        self._timeout, self._fail = timeout_seconds, fail
        self._neighbour = (world.rank + 1) % world.size
        self._is_over = threading.Event()
        self._changed, self._changed_at = 0, time.monotonic()
        self._beat_at = time.monotonic()

    def end(self) -> None:
        """Stop: the main thread came back, to leave in order or with an error of its own."""
        self._is_over.set()
        with suppress(OSError):
            self._file(self._rank).unlink(missing_ok=True)  # no file: nothing to look at

    def run(self) -> None:
        """Look again and again."""
        while not self._is_over.wait(BEAT_SECONDS):
            with suppress(OSError):  # a filesystem that is away says nothing about a rank
                self._beat()
                if heard(self._logs):
                    break
        if not self._is_over.wait(PATIENCE_SECONDS):
            self._leave()

    def _file(self, rank: int) -> Path:
        return self._logs / f"rank_{rank}.alive"

    def _beat(self) -> None:
        """Touch the own file, and speak for a neighbour who is dead."""
        self._file(self._rank).touch()
        file, now = self._file(self._neighbour), time.monotonic()
        changed = file.stat().st_mtime_ns if file.exists() else 0
        was_away = now - self._beat_at > 3 * BEAT_SECONDS  # stopped, perhaps as the neighbour was
        if changed != self._changed or not changed or was_away:
            self._changed, self._changed_at = changed, now
        self._beat_at = now
        still = now - self._changed_at
        if still <= STILL_SECONDS or self._neighbour in heard(self._logs):
            return
        said = f"no sign of life for {still:.0f} s"
        leave(
            self._logs,
            self._neighbour,
            Farewell(phase=current_phase(), error=said, is_cause=True, is_told=True),
        )
        sys.stderr.write(f"LostRankError: {self._text()}\n")
        sys.stderr.flush()

    def _text(self) -> str:
        return told(heard(self._logs), self._hosts, self._logs, self._timeout)

    def _leave(self) -> None:
        """End this process, whatever its main thread waits for."""
        text = self._text()
        _log.error("ended while it waited for other ranks: %s", text)
        self._fail(f"LostRankError: {text}".splitlines()[0])
        os._exit(1)
