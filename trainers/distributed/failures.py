"""When a rank fails, dies or hangs: all end in time, and one message says which it was.

A rank that an error ends leaves a farewell beside its log, gives its connections up, so that those
who wait for it end as well, and reads the farewells of the others. A rank without one is lost.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trainers.distributed.collectives import World, gather, shutdown
from trainers.distributed.exit_reports import Farewell, heard, leave, told
from trainers.distributed.watchdog import Watch
from trainers.errors import SAID_ELSEWHERE, LostRankError

GRACE_SECONDS = 8.0
"""How long farewells are waited for: a connection that is given up ends a wait at once, unless a
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
    watch = Watch(logs, world, hosts, timeout_seconds, fail=fail)
    watch.start()
    try:
        try:
            yield
        finally:
            watch.end()
    except Exception as error:
        own = Farewell.of(error)
        _log.error("ended in %s: %s", own.phase, own.error)
        farewells = _parted(logs, world, own)
        is_told = any(said.is_told for said in farewells.values())
        # On a full disk none of this rank was left: no other can say it.
        if (is_told or min(farewells) != world.rank) and world.rank in heard(logs):
            error.add_note(SAID_ELSEWHERE)
        else:
            leave(logs, world.rank, replace(own, is_told=True))
        causes = [rank for rank, said in farewells.items() if said.is_cause]
        if len(causes) == world.size:  # all of them found the same
            raise
        raise LostRankError(told(farewells, hosts, logs, timeout_seconds)) from error


def _parted(logs: Path, world: World, own: Farewell) -> dict[int, Farewell]:
    """Say farewell and hear the others'; return those of all ranks that said one."""
    leave(logs, world.rank, own)
    shutdown()
    deadline = time.monotonic() + GRACE_SECONDS
    found = {world.rank: own}
    while len(found) < world.size and time.monotonic() < deadline:
        found = heard(logs) | {world.rank: own}
        time.sleep(0.02)
    return dict(sorted(found.items()))
