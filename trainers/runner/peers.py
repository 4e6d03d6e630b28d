"""When a rank fails, dies or hangs: all end in time, and one message says which it was.

A rank that an error ends leaves a farewell beside its log, gives its connections up, so that those
who wait for it end as well, and reads the farewells of the others. A rank without one is lost.
"""

import json
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from trainers.distributed import World, gather, phase_of, shutdown
from trainers.errors import SAID_ELSEWHERE, LostRankError
from trainers.run_folder import RunFolder

GRACE_SECONDS = 8.0
"""How long farewells are waited for: a connection that is given up ends a wait at once."""
NO_ANSWER = re.compile(
    r"gloo|NCCL|[Cc]onnection (closed|reset|refused|was)|Broken pipe|[Tt]imed? ?out"
)
TIMED_OUT = re.compile(r"[Tt]imed? ?out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """What a rank says when it ends.

    Attributes:
        phase: what it was doing.
        error: the first line of its error, with its class.
        is_cause: False where another rank did not answer it.
    """

    phase: str
    error: str
    is_cause: bool

    @classmethod
    def of(cls, error: Exception) -> "Farewell":
        """Make it of an error."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        is_network = isinstance(error, dist.DistError) or type(error) is RuntimeError
        lost = is_network and NO_ANSWER.search(str(error)) is not None
        return cls(phase=phase_of(error), error=text, is_cause=not lost)


@contextmanager
def watched(folder: RunFolder, world: World, timeout_seconds: float) -> Iterator[None]:
    """Turn what one rank did to all into one error that names it; alone, do nothing.

    Raises:
        LostRankError: a rank failed by itself, died, or did not answer in time.
    """
    if world.size == 1:
        yield
        return
    hosts = gather(socket.gethostname())
    try:
        yield
    except Exception as error:
        farewells = _parted(folder.log_file.parent, world, Farewell.of(error))
        if min(farewells) != world.rank:
            error.add_note(SAID_ELSEWHERE)
        causes = [rank for rank, said in farewells.items() if said.is_cause]
        if len(causes) == world.size:  # all of them found the same
            raise
        logs = folder.log_file.parent
        raise LostRankError(told(farewells, hosts, logs, timeout_seconds)) from error


def _parted(logs: Path, world: World, own: Farewell) -> dict[int, Farewell]:
    """Say farewell and hear the others'; return those of all ranks that said one."""
    file = logs / f"rank_{world.rank}.farewell"
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(own)), encoding="utf-8")
    draft.replace(file)
    shutdown()
    deadline = time.monotonic() + GRACE_SECONDS
    found = {world.rank: own}
    while len(found) < world.size and time.monotonic() < deadline:
        for rank in range(world.size):
            other = logs / f"rank_{rank}.farewell"
            if rank not in found and other.exists():
                found[rank] = Farewell(**json.loads(other.read_text(encoding="utf-8")))
        time.sleep(0.02)
    return dict(sorted(found.items()))


def told(
    farewells: Mapping[int, Farewell], hosts: Sequence[str], logs: Path, timeout_seconds: float
) -> str:
    """Return which rank ended the others, how, and where it left words.

    Args:
        farewells: what ranks said; one that is missing is lost.
        hosts: of each rank.
        logs: the folder of their logs.
        timeout_seconds: how long they were waited for.
    """
    causes = {rank: said for rank, said in farewells.items() if said.is_cause}
    silent = [rank for rank in range(len(hosts)) if rank not in farewells]
    heard = next(iter(farewells.values()))
    ends = "Continue with the same command and --resume."
    if causes:
        rank, said = next(iter(causes.items()))
        return (
            f"rank {rank} ({hosts[rank]}) failed in {said.phase}: {said.error}."
            f"{_log('Its log', logs, rank)}\n{ends}"
        )
    if not silent:
        return (
            f"ranks lost each other in {heard.phase}: {heard.error}. Look at the network.\n{ends}"
        )
    who = ", ".join(f"{rank} ({hosts[rank]})" for rank in silent[:4])
    who += f" and {len(silent) - 4} more" * (len(silent) > 4)
    late = any(TIMED_OUT.search(said.error) for said in farewells.values())
    how = f"did not finish {heard.phase} within {timeout_seconds:g} s" if late else ""
    how = how or f"died in {heard.phase}: its connection was closed"
    return (
        f"rank {who} {how}; the other {len(farewells)} stopped."
        f"{_log('Last words', logs, silent[0])}\n{ends}"
    )


def _log(what: str, logs: Path, rank: int) -> str:
    """Point to the log of a rank, and say where nothing stands in it."""
    file = logs / f"rank_{rank}.log"
    has_words = file.exists() and file.stat().st_size > 0
    return f" {what}: {file}{'' if has_words else ' (empty)'}"
