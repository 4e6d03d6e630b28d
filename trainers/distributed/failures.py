"""When a rank fails, dies or hangs: all end in time, and one message says which it was.

A rank that an error ends writes an exit report beside its log and closes its connections, so that
the ranks that wait for it end as well; then it reads the reports of the others. A rank without one
is lost.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trainers.distributed.collectives import World, gather, shutdown
from trainers.distributed.exit_reports import (
    ExitReport,
    read_exit_reports,
    summarize_exits,
    write_exit_report,
)
from trainers.distributed.watchdog import Watchdog
from trainers.errors import SAID_ELSEWHERE, LostRankError

GRACE_SECONDS = 8.0
"""How long exit reports are waited for: a connection that is given up ends a wait at once, unless a
library keeps it open (DistributedDataParallel does). Then the others end when this process has."""
_log = logging.getLogger(__name__)


@contextmanager
def watched(
    logs: Path, world: World, timeout_seconds: float, *, fail: Callable[[str], None]
) -> Iterator[None]:
    """Turn what one rank did to all into one error that names it; alone, do nothing.

    Args:
        logs: folder of the logs of all ranks.
        world: this process among its peers.
        timeout_seconds: how long ranks wait for each other.
        fail: called with the reason, before a process ends that cannot raise.

    Raises:
        LostRankError: a rank failed by itself, died, or did not answer in time.
    """
    if world.size == 1:
        yield
        return
    hosts = gather(socket.gethostname())
    watch = Watchdog(logs, world, hosts, timeout_seconds, fail=fail)
    watch.start()
    try:
        try:
            yield
        finally:
            watch.end()
    except Exception as error:
        own = ExitReport.of(error)
        _log.error("ended in %s: %s", own.phase, own.error)
        reports = _parted(logs, world, own)
        is_told = any(report.is_told for report in reports.values())
        # On a full disk none of this rank was left: no other can say it.
        if (is_told or min(reports) != world.rank) and world.rank in read_exit_reports(logs):
            error.add_note(SAID_ELSEWHERE)
        else:
            write_exit_report(logs, world.rank, replace(own, is_told=True))
        causes = [rank for rank, report in reports.items() if report.is_cause]
        if len(causes) == world.size:  # all of them found the same
            raise
        raise LostRankError(summarize_exits(reports, hosts, logs, timeout_seconds)) from error


def _parted(logs: Path, world: World, own: ExitReport) -> dict[int, ExitReport]:
    """Write this rank's exit report, then read those of the others; return all that exist."""
    write_exit_report(logs, world.rank, own)
    shutdown()
    deadline = time.monotonic() + GRACE_SECONDS
    reports = {world.rank: own}
    while len(reports) < world.size and time.monotonic() < deadline:
        reports = read_exit_reports(logs) | {world.rank: own}
        time.sleep(0.02)
    return dict(sorted(reports.items()))
