"""What the tests of damaged and interrupted saves share: small states, and a process to kill."""

import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from trainers.checkpoint.loading import Checkpoint, find, find_at, load
from trainers.checkpoint.saving import Saver, checkpoint_name
from trainers.cli import main as cli
from trainers.distributed.collectives import World, shutdown, start
from trainers.errors import CheckpointError

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def save(folder: Path, number: int, *, keep_last: int = 1, size: int = 8) -> Path | None:
    """Save states that all say `number`."""
    full = torch.full((size,), float(number))
    saver = Saver(folder, {"number": number}, world=World(), keep_last=keep_last)
    return saver.save(
        checkpoint_name("ppo", number),
        parts={"policy": {"w": full}, "state": {"iteration": number}},
        own={"random": [number]},
    )


def says(found: Checkpoint) -> int:
    """Return the number that every part of a checkpoint says; an assertion if they differ."""
    loaded = load(found.path)
    said = {
        found.number,
        *loaded.parts["policy"][0]["w"].tolist(),
        loaded.parts["state"][0]["iteration"],
        loaded.own["random"][0],
        loaded.identity["number"],
    }
    assert len(said) == 1, f"half of one checkpoint and half of another: {said}"
    return found.number


def number_found(folder: Path) -> int | str | None:
    """Return the number of the checkpoint that a resume would take, or why there is none."""
    try:
        found = find(folder, "ppo")
    except CheckpointError as error:
        return str(error)
    return None if found is None else says(found)


def save_killed_at(folder: Path, number: int, event: int) -> None:
    """Save, and be killed just before the file operation `event`; run in a process of its own."""
    count = 0

    def watch(name: str, _: tuple[object, ...]) -> None:
        nonlocal count
        if name not in EVENTS:
            return
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(watch)
    save(folder, number)


def save_with_file_limit(folder: Path, number: int, limit: int) -> None:
    """Save where no file may grow beyond `limit` bytes; exit with 3 if that was noticed."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(3 if save(folder, number, size=100_000) is None else 0)


def train_with_file_limit(place: Path, words: Sequence[str], limit: int, said: str) -> None:
    """Type a command; after its first checkpoint no file may grow beyond `limit` bytes.

    What it says goes to the file `said`; the process exits as the command does.
    """
    os.chdir(place)
    sys.stderr = sys.stdout = open(said, "w", encoding="utf-8")  # noqa: SIM115 - to its end
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(event: str, args: tuple[object, ...]) -> None:
        if event == "os.rename" and str(args[1]).endswith("ppo_000001"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    sys.addaudithook(fill)
    sys.exit(cli.main(words))


def save_as_rank(rank: int, port: int, folder: Path, results: Path) -> None:
    """Save as one of two ranks: well, then with a full disk on rank 1, then from what is found.

    Writes what this rank saw into a file of `results`.
    """
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    world = World.from_launcher()
    start(world, 60)
    try:
        saver = Saver(folder, {}, world=world, keep_last=1)
        own = {"rank": rank, "large": torch.ones(100_000)}
        first = saver.save("ppo_000001", parts={"w": {"x": torch.ones(3)}}, own=own)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
        failed = saver.save("ppo_000002", parts={}, own=own)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        found = find(folder, "ppo")
        assert first is not None
        assert failed is None
        assert found is not None
        seen = load(found.path, rank).own["rank"]
        try:
            saver.save("ppo_000003", parts={}, own={"rank": rank})
            find_at(folder / "ppo_000009")
        except CheckpointError as error:
            (results / f"rank_{rank}").write_text(f"{found.number} {seen} {error}")
    finally:
        shutdown()
