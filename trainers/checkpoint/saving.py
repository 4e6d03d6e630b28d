"""Checkpoints: written so that a kill at any moment leaves the previous one or the new one whole.

    stage -> write -> vote -> seal -> publish -> rotate

Each is a function of its own. Every rank calls `save`; rank 0 alone stages, publishes and rotates,
and after each part all ranks hear of every rank's problems, so that they take the same branch. A
folder without a valid `manifest.json`, which is written last, does not exist for us. A manifest
proves that nothing was damaged, not who wrote it: load checkpoints of people you trust.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError

from trainers.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    NAME,
    damage,
    fingerprint,
    fsync,
    outline,
    published,
    read_manifest,
    sequence_of,
    size_of,
    write_manifest,
)
from trainers.checkpoint.state_files import State, read_state, write_state
from trainers.distributed.collectives import World, dealt, from_main, gather
from trainers.errors import CheckpointError

MAX_FAILURES = 3
PART = re.compile(r"(.+)\.rank_(\d+)")
SPACE_FACTOR = 1.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
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
        parts: what every rank held of a thing shared out among them, by name, in rank order.
        own: this rank's states, by name; of rank 0 where there were fewer ranks.
        identity: what `identity_of` returned when it was saved.
    """

    parts: Mapping[str, Sequence[dict[str, Any]]]
    own: Mapping[str, Any]
    identity: Mapping[str, Any]


def checkpoint_name(prefix: str, number: int) -> str:
    """Return the folder's name, as in ppo_000120."""
    return f"{prefix}_{number:06d}"


@final
class Saver:
    """Saves and rotates; forgives two failed saves in a row, since the last one stands.

    Args:
        folder: holds all checkpoints of a run.
        identity: what `identity_of` returned.
        world: this process among its peers.
        keep_last: how many of a prefix are kept.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, world: World, keep_last: int
    ) -> None:
        self.num_failed = 0
        self.identity = dict(identity)
        self._folder = folder
        self._world, self._keep_last = world, keep_last

    def save(
        self,
        name: str,
        *,
        parts: Mapping[str, State],
        own: Mapping[str, Any],
        keep: int | None = None,
        must: bool = False,
    ) -> Path | None:
        """Save; None if it failed and may be tried again after the next iteration.

        The checkpoint of number `keep` is kept beside the newest ones.

        Raises:
            CheckpointError: on every rank, at the third failure in a row, or if it `must` succeed.
        """
        try:
            path = save(
                self._folder,
                name,
                parts=parts,
                own=own,
                identity=self.identity,
                world=self._world,
            )
        except CheckpointError as error:
            self.num_failed += 1
            if must or self.num_failed >= MAX_FAILURES:
                raise
            _log.warning("%s\nTried again after the next iteration.", error)
            return None
        self.num_failed = 0
        if self._world.is_main:
            self._rotate(name.rpartition("_")[0], keep)
        return path

    def _rotate(self, prefix: str, keep: int | None) -> None:
        try:
            rotate(self._folder, prefix, self._keep_last, keep)
        except OSError as error:  # what was saved is whole; the next save removes the rest
            _log.warning("could not remove old checkpoints in %s: %s", self._folder, error)


def save(
    folder: Path,
    name: str,
    *,
    parts: Mapping[str, State],
    own: Mapping[str, Any],
    identity: Mapping[str, Any],
    world: World,
) -> Path:
    """Save a checkpoint; called by every rank.

    Args:
        name: as `checkpoint_name` makes it.
        parts: what this rank holds of things shared out among all ranks, by name.
        own: this rank's states, by name; they mean nothing to another rank.
        identity: what `identity_of` returned.

    Raises:
        CheckpointError: on every rank, when one of them could not write; the older checkpoints
            are untouched.
    """
    assert NAME.fullmatch(name), f"{name!r} is no checkpoint's name"
    draft, path = folder / f"{name}.tmp", folder / name
    try:
        vote(path, attempt(lambda: stage(draft)) if world.is_main else None)
        mine: list[str] = []
        vote(path, attempt(lambda: mine.extend(write(draft, parts, own, world))))
        files = seal(draft, path, mine)
        body = {"format": FORMAT, "name": name, "identity": identity, "files": files}
        vote(path, attempt(lambda: write_manifest(draft, body)) if world.is_main else None)
        vote(path, attempt(lambda: publish(draft)) if world.is_main else None)
    except CheckpointError:
        if world.is_main:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    return path


def attempt(work: Callable[[], object]) -> str | None:
    """Do some writing; return what went wrong with the disk, None if nothing did."""
    try:
        work()
    except (OSError, SafetensorError) as error:
        return str(error)
    return None


def vote(path: Path, problem: str | None) -> None:
    """Hear of every rank's problem.

    Raises:
        CheckpointError: on every rank, if one has a problem.
    """
    problems = gather(problem)
    if any(problems):
        said = "; ".join(f"rank {rank}: {one}" for rank, one in enumerate(problems) if one)
        raise CheckpointError(f"could not save {path} ({said}). The checkpoints before it stand.")


def stage(draft: Path) -> None:
    """Make the empty folder that is written into; `OSError` where space is short."""
    draft.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if draft.exists():
        shutil.rmtree(draft)
    needed = int(SPACE_FACTOR * max(map(size_of, published(draft.parent)), default=0))
    free = shutil.disk_usage(draft.parent).free
    if free < needed:
        raise OSError(
            f"{free:,} bytes free in {draft.parent}, about {needed:,} needed; "
            "free some, or lower checkpoint.keep_last"
        )
    draft.mkdir(mode=0o700)


def write(
    draft: Path, parts: Mapping[str, State], own: Mapping[str, Any], world: World
) -> list[str]:
    """Write what this rank holds and return the files."""
    if not draft.is_dir():
        raise OSError(f"{draft} of rank 0 is not seen here: runs need a shared filesystem")
    named = {f"{part}.rank_{world.rank}": state for part, state in parts.items()}
    named[f"rank_{world.rank}"] = own
    return [file for part, state in named.items() for file in write_state(state, draft, part)]


def seal(draft: Path, path: Path, mine: Sequence[str]) -> dict[str, list[Any]]:
    """Make what was written durable and return file -> [size in bytes, SHA-256] of all ranks.

    Each rank answers for the files it wrote: a listing on another host may be out of date.

    Args:
        mine: the files that this rank wrote.

    Raises:
        CheckpointError: on every rank, if a file is gone or cannot be made durable.
    """
    sealed: dict[str, list[Any]] = {}

    def work() -> None:
        for file in mine:
            fsync(draft / file)
            sealed[file] = fingerprint(draft / file)

    vote(path, attempt(work))
    return {file: entry for part in gather(sealed) for file, entry in part.items()}


def publish(draft: Path) -> None:
    """Give the folder its name in one step; one of that name stays aside until `rotate`."""
    target = draft.with_suffix("")
    if os.path.lexists(target):
        aside = target.with_name(f"{target.name}.replaced")
        if os.path.lexists(aside):
            discard(aside)
        os.rename(target, aside)
    os.rename(draft, target)
    fsync(draft.parent)


def rotate(folder: Path, prefix: str, keep_last: int, keep: int | None = None) -> None:
    """Remove all but the newest `keep_last` and number `keep`.

    Only folders with our manifest are removed, never a link.
    """
    ours = [
        path
        for path in published(folder, prefix)
        if not path.is_symlink() and read_manifest(path) is not None
    ]
    current = [path for path in ours if not path.suffix]
    kept = sorted(current, key=sequence_of)[-keep_last:]
    if keep is not None:
        kept.append(folder / checkpoint_name(prefix, keep))
    for path in ours:
        if path not in kept:
            discard(path)
    for trash in folder.glob(".trash-*"):
        if not trash.is_symlink() and NAME.fullmatch(trash.name.removeprefix(".trash-")):
            _remove(trash)


def discard(path: Path) -> None:
    """Move a checkpoint out of sight, then delete it; half of one is never seen."""
    trash = path.with_name(f".trash-{path.name}")
    if os.path.lexists(trash):
        _remove(trash)
    os.rename(path, trash)
    _remove(trash)


def find(folder: Path, prefix: str) -> Found | None:
    """Return the newest whole checkpoint, the same on every rank. None: none was ever published.

    Raises:
        CheckpointError: on every rank, if there are some and none is whole; says why.
    """
    problems: list[str] = []
    for path in from_main(lambda: sorted(published(folder, prefix), key=sequence_of, reverse=True)):
        problem = verify(path)
        match = NAME.fullmatch(path.name)
        if problem is None and match:
            for said in problems:
                _log.warning("passed over %s", said)
            return Found(path=path, number=int(match[2]), passed_over=tuple(problems))
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
    found = [damage(path, file, digest) for file, (_, digest) in dealt(largest_first)]
    return next((one for part in gather(found) for one in part if one), None)


def check_at(path: Path) -> None:
    """Refuse what cannot be a checkpoint, before anything is begun; `find_at` reads it whole.

    Raises:
        CheckpointError: it is none.
    """
    problem = None
    if not NAME.fullmatch(path.name):
        problem = "its name is no checkpoint's"
    elif not (path / MANIFEST).is_file():
        problem = f"it has no {MANIFEST}" if path.is_dir() else "no such folder"
    if problem is not None:
        raise CheckpointError(_cannot(path, problem))


def _cannot(path: Path, problem: str | None) -> str:
    return f"cannot resume from {path}: {problem}. A bare --resume takes the newest whole one."


def find_at(path: Path) -> Found:
    """Return the checkpoint at `path`, which must be whole; the same on every rank.

    Raises:
        CheckpointError: on every rank, if it is broken or not one of ours.
    """
    match = NAME.fullmatch(path.name)
    problem = verify(path) if match else "its name is no checkpoint's"
    if problem is not None or match is None:
        raise CheckpointError(_cannot(path, problem))
    return Found(path=path, number=int(match[2]))


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


def _remove(trash: Path) -> None:
    if trash.is_symlink() or trash.is_file():
        trash.unlink()
    else:
        shutil.rmtree(trash)
