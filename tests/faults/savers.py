"""What the tests of damaged and interrupted saves share: small states, and a process to kill."""

import os
import resource
import signal
import sys
from pathlib import Path

import torch

from trainers.checkpoint import Found, Saver, checkpoint_name, find, load
from trainers.distributed import World
from trainers.errors import CheckpointError

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def save(folder: Path, number: int, *, keep_last: int = 1, size: int = 8) -> Path | None:
    """Save states that all say `number`."""
    full = torch.full((size,), float(number))
    saver = Saver(folder, {"number": number}, world=World(), keep_last=keep_last)
    return saver.save(
        checkpoint_name("ppo", number),
        shared={"policy": {"w": full}, "state": {"iteration": number}},
        own={"random": [number]},
    )


def says(found: Found) -> int:
    """Return the number that every part of a checkpoint says; an assertion if they differ."""
    loaded = load(found.path)
    said = {
        found.number,
        *loaded.shared["policy"]["w"].tolist(),
        loaded.shared["state"]["iteration"],
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
