"""Checkpoints: written so that a kill at any moment leaves the previous one or the new one whole.

    stage -> write -> vote -> seal -> publish -> rotate

Each is a function of its own. Every rank calls `save`; rank 0 alone stages, publishes and rotates,
and after each part all ranks hear of every rank's problems, so that they take the same branch. A
folder without a valid `manifest.json`, which is written last, does not exist for us.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError

from trainers.checkpoint.manifest import (
    CHECKPOINT_NAME,
    FORMAT,
    checkpoint_size,
    fingerprint,
    fsync,
    published,
    read_manifest,
    sequence_of,
    write_manifest,
)
from trainers.checkpoint.state_files import State, write_state
from trainers.distributed.collectives import World, gather
from trainers.errors import CheckpointError

MAX_FAILURES = 3
SPACE_FACTOR = 1.2

_log = logging.getLogger(__name__)


def checkpoint_name(prefix: str, number: int) -> str:
    """Return the folder's name, as in ppo_000120."""
    return f"{prefix}_{number:06d}"


@final
class Saver:
    """Saves and rotates; allows two failed saves in a row, since the last checkpoint is kept.

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
        parts: what this rank holds of what is sharded over all ranks, by name.
        own: this rank's states, by name; they mean nothing to another rank.
        identity: what `identity_of` returned.

    Raises:
        CheckpointError: on every rank, when one of them could not write; the older checkpoints
            are untouched.
    """
    assert CHECKPOINT_NAME.fullmatch(name), f"{name!r} is no checkpoint's name"
    draft, path = folder / f"{name}.tmp", folder / name
    try:
        vote(path, try_write(lambda: stage(draft)) if world.is_main else None)
        mine: list[str] = []
        vote(path, try_write(lambda: mine.extend(write_parts(draft, parts, own, world))))
        files = seal(draft, path, mine)
        body = {"format": FORMAT, "name": name, "identity": identity, "files": files}
        vote(path, try_write(lambda: write_manifest(draft, body)) if world.is_main else None)
        vote(path, try_write(lambda: publish(draft)) if world.is_main else None)
    except CheckpointError:
        if world.is_main:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    return path


def try_write(work: Callable[[], object]) -> str | None:
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
        causes = "; ".join(
            f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem
        )
        raise CheckpointError(f"could not save {path} ({causes}). The checkpoints before it stand.")


def stage(draft: Path) -> None:
    """Make the empty folder that is written into; `OSError` where space is short."""
    draft.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if draft.exists():
        shutil.rmtree(draft)
    needed = int(SPACE_FACTOR * max(map(checkpoint_size, published(draft.parent)), default=0))
    free = shutil.disk_usage(draft.parent).free
    if free < needed:
        raise OSError(
            f"{free:,} bytes free in {draft.parent}, about {needed:,} needed; "
            "free some, or lower checkpoint.keep_last"
        )
    draft.mkdir(mode=0o700)


def write_parts(
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

    vote(path, try_write(work))
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
        if not trash.is_symlink() and CHECKPOINT_NAME.fullmatch(trash.name.removeprefix(".trash-")):
            _remove(trash)


def discard(path: Path) -> None:
    """Move a checkpoint out of sight, then delete it; half of one is never seen."""
    trash = path.with_name(f".trash-{path.name}")
    if os.path.lexists(trash):
        _remove(trash)
    os.rename(path, trash)
    _remove(trash)


def _remove(trash: Path) -> None:
    if trash.is_symlink() or trash.is_file():
        trash.unlink()
    else:
        shutil.rmtree(trash)
