"""A watchdog thread: ends a rank that hangs in an NCCL call, where Python signals are not handled.

Over gloo a wait ends with the connection. NCCL waits for its time-out, and torch then aborts the
process without a word. So every rank has a thread that touches a file beside its log, looks at the
file of its neighbour, and reads exit reports:

    a rank raises  ->  it writes a report  ->  the others end
    a rank dies    ->  its file keeps still  ->  its neighbour writes one for it: all end
    a rank hangs   ->  its main thread does  ->  one that waits for it writes one for it: all end
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

import torch.distributed as dist

from llmgym.limits import place
from trainers.distributed.collectives import World, current_phase, num_waits
from trainers.distributed.exit_reports import (
    ExitReport,
    read_exit_reports,
    summarize_exits,
    write_exit_report,
)

BEAT_SECONDS = 5.0
"""Between two touches."""
STILL_SECONDS = 300.0
"""A file that has not changed for so long is a dead rank's: a library that holds Python's lock is
done by then, and what a shared filesystem remembers of a file is new."""
PATIENCE_SECONDS = 20.0
"""What the main thread has to end by itself, once there is an exit report."""
MARGIN_SECONDS = 45.0
"""Before NCCL's time-out a rank that hangs is named, or in its last tenth: then exit reports and
patience fit in."""

_log = logging.getLogger(__name__)


@final
class Watchdog(threading.Thread):
    """Watches one rank and its neighbour until `end` is called; made by the main thread.

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
        self._is_deaf = dist.is_initialized() and dist.get_backend() == "nccl"
        self._main = threading.get_ident()
        self._is_over = threading.Event()
        now = time.monotonic()
        self._beat_at, self._moved, self._moved_at = now, (0, 0), now
        self._changed, self._changed_at = 0, now

    def end(self) -> None:
        """Stop: the main thread came back, to leave in order or with an error of its own."""
        self._is_over.set()
        self.join(BEAT_SECONDS)  # else a look under way would write the file again
        with suppress(OSError):
            self._file(self._rank).unlink(missing_ok=True)  # no file: nothing to look at

    def run(self) -> None:
        """Look again and again."""
        while not self._is_over.wait(BEAT_SECONDS):
            with suppress(OSError):  # a filesystem that is away says nothing about a rank
                self._beat()
                if read_exit_reports(self._logs):
                    break
        if not self._is_over.wait(PATIENCE_SECONDS):
            self._leave()

    def _file(self, rank: int) -> Path:
        return self._logs / f"rank_{rank}.alive"

    def _beat(self) -> None:
        """Report where this rank is, and report for a rank that is dead or hangs."""
        now = time.monotonic()
        frame = sys._current_frames().get(self._main)
        moved = (num_waits(), 0 if frame is None else hash((id(frame), frame.f_lasti)))
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        self._file(self._rank).write_text(f"{num_waits()} {place(frame)}", encoding="utf-8")
        file = self._file(self._neighbour)
        changed = file.stat().st_mtime_ns if file.exists() else 0
        was_away = now - self._beat_at > 3 * BEAT_SECONDS  # stopped, perhaps as the neighbour was
        if changed != self._changed or not changed or was_away:
            self._changed, self._changed_at = changed, now
        self._beat_at = now
        if now - self._changed_at > STILL_SECONDS:
            self._speak_for(
                {self._neighbour: f"no sign of life for {now - self._changed_at:.0f} s"}
            )
        still = now - self._moved_at
        if self._is_deaf and still > max(self._timeout - MARGIN_SECONDS, 0.9 * self._timeout):
            late = self._late().items()
            self._speak_for({r: f"it hangs at {where}, for {still:.0f} s" for r, where in late})

    def _late(self) -> dict[int, str]:
        """Return where the ranks are that all others wait for; none if it is not to be reported.

        They began to wait less often than others; or it was a library that waits, and most ranks
        are at one place. Of the others the lowest speaks.
        """
        stand: dict[int, tuple[int, str]] = {}
        for rank in range(len(self._hosts)):
            with suppress(OSError, ValueError):  # it is done, or being written
                waits, where = self._file(rank).read_text(encoding="utf-8").split(maxsplit=1)
                stand[rank] = int(waits), where
        most = max((waits for waits, _ in stand.values()), default=0)
        late = {rank: where for rank, (waits, where) in stand.items() if waits < most}
        if not late and stand:
            usual, count = Counter(where for _, where in stand.values()).most_common(1)[0]
            is_clear = 2 * count > len(stand)
            late = {r: where for r, (_, where) in stand.items() if is_clear and where != usual}
        first = min(stand.keys() - late.keys(), default=None)
        return late if first == self._rank else {}

    def _speak_for(self, others: Mapping[int, str]) -> None:
        """Write the exit reports of ranks that cannot, and say so."""
        known = read_exit_reports(self._logs)
        if known or not others:
            return
        for rank, error in others.items():
            of_it = ExitReport(phase=current_phase(), error=error, is_cause=True, is_told=True)
            write_exit_report(self._logs, rank, of_it)
        sys.stderr.write(f"LostRankError: {self._text()}\n")
        sys.stderr.flush()

    def _text(self) -> str:
        return summarize_exits(
            read_exit_reports(self._logs), self._hosts, self._logs, self._timeout
        )

    def _leave(self) -> None:
        """End this process, whatever its main thread waits for, and log where it stood."""
        text = self._text()
        _log.error("ended from outside of its main thread: %s", text)
        with suppress(OSError), (self._logs / f"rank_{self._rank}.log").open("a") as stream:
            faulthandler.dump_traceback(stream)
        self._fail(f"LostRankError: {text}".splitlines()[0])
        os._exit(1)
