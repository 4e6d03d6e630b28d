"""The launcher that started this rank: when it is gone, nobody is left to end the rank.

torchrun starts its ranks itself. `deepspeed` starts a process a node, and that one the ranks; on a
single node it is a child of the command that was typed. A shell that sets RANK is no launcher: it
may end before its ranks, as after `nohup`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

OF_TORCHRUN, OF_DEEPSPEED = "TORCHELASTIC_RUN_ID", "CROSS_RANK"
"""What a launcher sets for its ranks, and a person for none."""


def launchers() -> tuple[int, ...]:
    """Return the processes that started this rank, nearest first; none where a shell did.

    Once one of them is gone, the rank has another parent and the answer is another.
    """
    if OF_TORCHRUN in os.environ:
        return (os.getppid(),)
    if OF_DEEPSPEED not in os.environ:
        return ()
    is_alone = os.environ.get("CROSS_SIZE") == "1"  # else ssh lies between, on another host
    return (os.getppid(), *(_parent(os.getppid()) if is_alone else ()))


def _parent(pid: int) -> Iterator[int]:
    """Yield the parent of a process; nothing where it is gone, or the system has no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    yield int(stat.rpartition(")")[2].split()[1])  # behind a name that may hold anything
