"""The launcher that started this rank: when it is gone, nobody is left to end the rank.

torchrun starts its ranks itself. `deepspeed` starts a process a node, and that one the ranks; on a
single node it is a child of the command that was typed. A shell that sets RANK is no launcher: it
may end before its ranks, as after `nohup`.
"""

import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OF_TORCHRUN, OF_DEEPSPEED = "TORCHELASTIC_RUN_ID", "CROSS_RANK"
"""What a launcher sets for its ranks, and a person for none."""
SPINS = "1000"
"""Rounds that an idle OpenMP thread spins before it sleeps; measured in docs/guides/launch.md."""
LAUNCHER_POLL_SECONDS = 0.5
"""Seconds between two looks at the launcher while ranks meet."""


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


INITIAL_LAUNCHERS = launchers()
"""Those there were as this module was imported, which the command line does first of all."""


def is_lost() -> bool:
    """Tell whether a launcher has gone since."""
    return bool(INITIAL_LAUNCHERS) and launchers() != INITIAL_LAUNCHERS


def share_cores() -> None:
    """Give this rank its share of the node's cores; before torch is loaded, which reads it once.

    deepspeed leaves all cores to each rank, torchrun one: there a script has to say how many.
    """
    if here := os.environ.get("LOCAL_SIZE"):
        threads = max(1, len(os.sched_getaffinity(0)) // int(here))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def limit_spinning() -> None:
    """Let idle OpenMP threads sleep soon; before torch is loaded, whose libgomp reads it once.

    By default they spin, and take a busy machine's cores from the threads that they wait for. What
    the user set counts.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


@contextmanager
def ends_with_launcher() -> Iterator[None]:
    """End this process with its launcher: before a run begins there is nothing to save.

    Ranks that wait to meet would wait for the others, or for torchrun's store, until the time-out.
    """
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(LAUNCHER_POLL_SECONDS):
            if is_lost():
                sys.stderr.write("the launcher is gone before the run began: nothing to save\n")
                sys.stderr.flush()
                os._exit(1)

    if INITIAL_LAUNCHERS:
        threading.Thread(target=look, daemon=True, name="launcher").start()
    try:
        yield
    finally:
        is_over.set()


def continuing(run: Path) -> str:
    """Return what to type to go on with a run as it was started."""
    words = f"-c {shlex.quote(str(run / 'config.yaml'))} --resume"
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1" and not INITIAL_LAUNCHERS:
        return f"llmgym train {words}"
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE"))
    if not INITIAL_LAUNCHERS or here != size:
        return "the same command on every host, with --resume"
    option = "nproc_per_node" if OF_TORCHRUN in os.environ else "num_accelerators"
    program = "torchrun" if OF_TORCHRUN in os.environ else "deepspeed"
    return f"{program} --{option} {here} {shlex.quote(sys.argv[0])} {words}"
