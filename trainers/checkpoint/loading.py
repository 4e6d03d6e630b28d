"""Find the newest complete checkpoint, verify it and read it; `saving.py` says how one is written.

A manifest proves that nothing was damaged, not who wrote it: load checkpoints of people you trust.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.checkpoint.manifest import (
    CHECKPOINT_NAME,
    MANIFEST,
    damage,
    outline,
    published,
    read_manifest,
    sequence_of,
)
from trainers.checkpoint.state_files import read_state
from trainers.distributed.collectives import dealt, from_main, gather
from trainers.errors import CheckpointError

PART = re.compile(r"(.+)\.rank_(\d+)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was verified.

    Attributes:
        number: the iteration or step in its name.
        passed_over: newer ones that are broken, and why.
    """

    path: Path
    number: int
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a checkpoint holds.

    Attributes:
        parts: what every rank held of what is sharded over them, by name, in rank order.
        own: this rank's states, by name; of rank 0 where there were fewer ranks.
        identity: what `identity_of` returned when it was saved.
    """

    parts: Mapping[str, Sequence[dict[str, Any]]]
    own: Mapping[str, Any]
    identity: Mapping[str, Any]


def find(folder: Path, prefix: str) -> Checkpoint | None:
    """Return the newest whole checkpoint, the same on every rank. None: none was ever published.

    Raises:
        CheckpointError: on every rank, if there are some and none is whole; says why.
    """
    problems: list[str] = []
    for path in from_main(lambda: sorted(published(folder, prefix), key=sequence_of, reverse=True)):
        problem = verify(path)
        match = CHECKPOINT_NAME.fullmatch(path.name)
        if problem is None and match:
            for passed_over in problems:
                _log.warning("passed over %s", passed_over)
            return Checkpoint(path=path, number=int(match[2]), passed_over=tuple(problems))
        problems.append(f"{path}: {problem}")
    if not problems:
        return None
    raise CheckpointError(
        f"none of the checkpoints in {folder} is whole:\n  " + "\n  ".join(problems) + "\n"
        "Restore one from a copy, or start anew with --clean."
    )


def verify(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if it is whole; called by every rank.

    Rank 0 looks at names and sizes. Reading all bytes takes long: they are dealt out over the
    ranks, the largest files first, so that each has about as much to read.
    """
    files, problem = from_main(lambda: outline(path))
    if problem is not None:
        return problem
    largest_first = sorted(files.items(), key=lambda item: item[1][0], reverse=True)
    problems = [damage(path, file, digest) for file, (_, digest) in dealt(largest_first)]
    return next((problem for part in gather(problems) for problem in part if problem), None)


def check_at(path: Path) -> None:
    """Refuse what cannot be a checkpoint, before anything is begun; `find_at` reads it whole.

    Raises:
        CheckpointError: it is none.
    """
    problem = None
    if not CHECKPOINT_NAME.fullmatch(path.name):
        problem = "its name is no checkpoint's"
    elif not (path / MANIFEST).is_file():
        problem = f"it has no {MANIFEST}" if path.is_dir() else "no such folder"
    if problem is not None:
        raise CheckpointError(_cannot(path, problem))


def _cannot(path: Path, problem: str | None) -> str:
    return f"cannot resume from {path}: {problem}. A bare --resume takes the newest whole one."


def find_at(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, which must be whole; the same on every rank.

    Raises:
        CheckpointError: on every rank, if it is broken or not one of ours.
    """
    match = CHECKPOINT_NAME.fullmatch(path.name)
    problem = verify(path) if match else "its name is no checkpoint's"
    if problem is not None or match is None:
        raise CheckpointError(_cannot(path, problem))
    return Checkpoint(path=path, number=int(match[2]))


def load(path: Path, rank: int = 0) -> Loaded:
    """Read a checkpoint that `find` returned; nothing in it is executed, tensors are on the CPU.

    Raises:
        CheckpointError: it has no valid manifest.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise CheckpointError(f"{path} is no checkpoint: it has no valid {MANIFEST}")
    files = {file.removesuffix(".json") for file in manifest["files"] if file.endswith(".json")}
    mine = f"rank_{rank}" if f"rank_{rank}" in files else "rank_0"
    ranks: dict[str, dict[int, dict[str, Any]]] = {}
    for file in files:
        if match := PART.fullmatch(file):
            ranks.setdefault(match[1], {})[int(match[2])] = read_state(path, file)
    return Loaded(
        parts={part: [states[n] for n in sorted(states)] for part, states in ranks.items()},
        own=read_state(path, mine),
        identity=manifest["identity"],
    )
