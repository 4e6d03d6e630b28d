"""Processes below a process: which there are, and their end."""

import os
import signal
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path


def children_by_parent() -> dict[int, list[int]]:
    """Return the ids of processes by their parent's, where the system lists them in /proc."""
    children: dict[int, list[int]] = defaultdict(list)
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            stat = file.read_text(encoding="utf-8", errors="replace")
            parent = int(stat.rpartition(")")[2].split()[1])
            children[parent].append(int(file.parent.name))
    return children


def descendants(root: int, without: Collection[int] = ()) -> list[int]:
    """Return the ids of all processes below one.

    Args:
        root: its id, which is not among them.
        without: processes that are left out, with all that is below them.
    """
    children = children_by_parent()
    pids = [pid for pid in children[root] if pid not in without]
    for pid in pids:  # grows while it is walked
        pids += [child for child in children.get(pid, []) if child not in without]
    return pids


def end_all(processes: Iterable[int]) -> None:
    """Kill processes; those that are gone already are none to kill."""
    for pid in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
