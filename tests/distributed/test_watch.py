"""Ranks that are deaf, as those that wait for NCCL are, end when another rank is gone."""

import json
import os
import signal
import sys
import threading
import time
from unittest import mock

import pytest
import torch.distributed as dist

from tests.distributed.ranks import free_port
from tests.processes import process
from trainers.distributed import watchdog as watch
from trainers.distributed.collectives import World, gather, phase, start
from trainers.distributed.failures import watched
from trainers.run_dir.folder import RunFolder
from trainers.run_dir.lock import RunLock

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


def hangs_at_1(rank):
    with phase("rollout"):
        if rank == 1:
            deaf(rank)
        gather(rank)  # counted, and longer than the test


def hangs_at_1_before_a_library(rank):
    with phase("update"):
        if rank == 1:
            deaf(rank)
        library()


def library():
    """Wait for the others where nothing of ours does, as layers at stage 3 do."""
    dist.barrier()


def is_done_first_at_1(rank):
    if rank == 0:
        time.sleep(5.0)


def is_stopped(rank):
    """Both stand still for a while, as after Ctrl-Z, and go on."""
    time.sleep(8.0)


def run(rank, port, folder, work, size):
    """What one rank does, its standard error in a file."""
    os.dup2(os.open(folder / f"stderr_{rank}", os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
    for name, seconds in SOON.items():
        setattr(watch, name, seconds)
    world = World.from_launcher()
    start(world, 60.0)
    timeout = 60.0
    if work in (hangs_at_1, hangs_at_1_before_a_library):
        watch.dist = mock.Mock(is_initialized=lambda: True, get_backend=lambda: "nccl")
        timeout = 5.0
    lock = RunLock(folder / "run.lock")
    if world.is_main:
        lock.take()
    one = RunFolder(folder, 1, world, lock)
    with watched(one.log_file.parent, world, timeout, fail=lambda said: failed(one, said)):
        work(rank)


def failed(folder, said):
    folder.set_status("failed", iteration=3, reason=said)
    folder.close()


def ended(folder, work, size=2):
    """Run ranks; return what ends them, in order."""
    port = free_port()
    ranks = [process(run, rank, port, folder, work, size) for rank in range(size)]
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
    assert ended(folder, raises_at_1) == [1, 1]
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["iteration"]) == ("failed", 3)
    assert "LostRankError: rank 1 (" in status["reason"]
    assert "failed in rollout: ValueError: a broken reward" in status["reason"]
    assert not (folder / "run.lock").exists()
    assert "failed in rollout" in said(folder, 1)
    assert said(folder, 0) == ""  # one message, from the rank it is about
    assert (
        "ended from outside of its main thread"
        in (folder / "logs/attempt_1/rank_0.log").read_text()
    )


def test_a_deaf_rank_ends_when_another_dies(folder):
    assert ended(folder, dies_at_1) == [1, -signal.SIGKILL]
    assert "LostRankError: rank 1 (" in said(folder, 0)
    assert "failed in update: no sign of life for 3 s. Its log: " in said(folder, 0)
    assert said(folder, 0).count("LostRankError") == 1
    assert "no sign of life" in json.loads((folder / "status.json").read_text())["reason"]


@pytest.mark.parametrize(("work", "size"), [(hangs_at_1, 2), (hangs_at_1_before_a_library, 3)])
def test_deaf_ranks_end_when_another_hangs_and_it_is_named_with_where_it_stands(work, size, folder):
    assert ended(folder, work, size) == [1] * size
    assert "LostRankError: rank 1 (" in said(folder, 0)
    assert f"it hangs at {__file__}:" in said(folder, 0)
    assert said(folder, 0).count("LostRankError") == 1
    log = (folder / "logs/attempt_1/rank_1.log").read_text()
    assert "in deaf" in log  # the stack of the main thread


@pytest.mark.parametrize("work", [is_done_first_at_1, is_stopped])
def test_a_rank_that_is_done_or_was_stopped_with_the_others_is_not_lost(work, folder):
    assert ended(folder, work) == [0, 0]
    assert not list((folder / "logs" / "attempt_1").glob("*.exit_report"))
    assert not list((folder / "logs" / "attempt_1").glob("*.alive"))
