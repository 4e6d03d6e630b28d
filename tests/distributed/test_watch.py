"""Ranks that are deaf, as those that wait for NCCL are, end when another rank is gone."""

import json
import os
import signal
import sys
import threading
import time
from multiprocessing import get_context

import pytest

from tests.distributed.ranks import free_port
from trainers.distributed import World, phase, start
from trainers.run_folder import RunFolder
from trainers.run_lock import RunLock
from trainers.runner import watch
from trainers.runner.peers import watched

SOON = {"BEAT_SECONDS": 0.1, "STILL_SECONDS": 3.0, "PATIENCE_SECONDS": 1.0}


def deaf(rank):
    threading.Event().wait()


def raises_at_1(rank):
    if rank == 1:
        with phase("rollout"):
            raise ValueError("a broken reward")
    deaf(rank)


def dies_at_1(rank):
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    with phase("update"):
        deaf(rank)


def is_done_first_at_1(rank):
    if rank == 0:
        time.sleep(5.0)


def is_stopped(rank):
    """Both stand still for a while, as after Ctrl-Z, and go on."""
    time.sleep(8.0)


def run(rank, port, folder, work):
    """What one rank does, its standard error in a file."""
    os.dup2(os.open(folder / f"stderr_{rank}", os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
    for name, seconds in SOON.items():
        setattr(watch, name, seconds)
    world = World.from_launcher()
    start(world, 60.0)
    lock = RunLock(folder / "run.lock")
    if world.is_main:
        lock.take()
    one = RunFolder(folder, 1, world, lock)
    with watched(one, world, 60.0, fail=lambda said: failed(one, said)):
        work(rank)


def failed(folder, said):
    folder.set_status("failed", iteration=3, reason=said)
    folder.close()


def both(folder, work):
    """Run two ranks; return what ends them, in rank order."""
    port = free_port()
    ranks = [
        get_context("spawn").Process(target=run, args=(rank, port, folder, work), daemon=True)
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    if work is is_stopped:
        logs = folder / "logs" / "attempt_1"
        until = time.monotonic() + 60
        while len(list(logs.glob("*.alive"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in ranks:
                os.kill(rank.pid, number)
            time.sleep(SOON["STILL_SECONDS"] + 1)
    for rank in ranks:
        rank.join(timeout=60)
        rank.kill()
        rank.join()
    return [rank.exitcode for rank in ranks]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "logs" / "attempt_1").mkdir(parents=True)
    return tmp_path


def said(folder, rank):
    return (folder / f"stderr_{rank}").read_text()


def test_a_deaf_rank_ends_when_another_raises(folder):
    assert both(folder, raises_at_1) == [1, 1]
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["iteration"]) == ("failed", 3)
    assert "LostRankError: rank 1 (" in status["reason"]
    assert "failed in rollout: ValueError: a broken reward" in status["reason"]
    assert not (folder / "run.lock").exists()
    assert "failed in rollout" in said(folder, 1)
    assert said(folder, 0) == ""  # one message, from the rank it is about
    assert "ended while it waited" in (folder / "logs/attempt_1/rank_0.log").read_text()


def test_a_deaf_rank_ends_when_another_dies(folder):
    assert both(folder, dies_at_1) == [1, -signal.SIGKILL]
    assert "LostRankError: rank 1 (" in said(folder, 0)
    assert "failed in update: no sign of life for 3 s. Its log: " in said(folder, 0)
    assert said(folder, 0).count("LostRankError") == 1
    assert "no sign of life" in json.loads((folder / "status.json").read_text())["reason"]


@pytest.mark.parametrize("work", [is_done_first_at_1, is_stopped])
def test_a_rank_that_is_done_or_was_stopped_with_the_others_is_not_lost(work, folder):
    assert both(folder, work) == [0, 0]
    assert not list((folder / "logs" / "attempt_1").glob("*.farewell"))
    assert not list((folder / "logs" / "attempt_1").glob("*.alive"))
