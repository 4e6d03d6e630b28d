"""A launcher that is killed leaves no rank behind: all save once, and stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests import tiny
from tests.distributed.ranks import free_port
from trainers.checkpoint.loading import find
from trainers.checkpoint.manifest import published
from trainers.run_dir.record import read_status
from trainers.runner.run import run

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/train_ppo.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
DEEPSPEED = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port"]
START_SECONDS = 400
LIMIT_SECONDS = 60
"""From the death of the launcher to that of the last process it had started."""
ENDLESS = 100_000


def is_gone(process):
    """Whether a process has ended, though nobody may have asked for its exit code."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(condition, seconds):
    """Wait for a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def has_learned(figures):
    """Whether an iteration is done."""
    return figures.exists() and "loss/total" in figures.read_text()


@contextmanager
def started(command, folder, **words):
    """A launcher that trains by two ranks, and all its descendants once both have learned."""
    typed = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    with (folder / "said").open("w") as said:
        launcher = subprocess.Popen(
            [sys.executable, *command, *typed], cwd=ROOT, stdout=said, stderr=said,
            env={**os.environ, "DS_ACCELERATOR": "cpu"},
        )  # fmt: skip
    there = psutil.Process(launcher.pid)
    figures, below = folder / "a" / "metrics.jsonl", []
    try:
        until(lambda: launcher.poll() is not None or has_learned(figures), START_SECONDS)
        assert has_learned(figures), (folder / "said").read_text()
        assert launcher.poll() is None
        below = there.children(recursive=True)
        yield launcher, below
    finally:
        below = below or ([] if is_gone(there) else there.children(recursive=True))
        for one in below:
            if not is_gone(one):
                one.kill()
        launcher.kill()
        launcher.wait()


def assert_saved_once(folder, model):
    """Check what is left: one checkpoint, the reason, and a run that goes on."""
    said = (folder / "said").read_text()
    status = read_status(folder / "a")
    assert status["status"] == "interrupted", said
    host = re.escape(socket.gethostname())
    assert re.fullmatch(rf"the launcher of rank [01] \({host}\) is gone", status["reason"])
    remedy = "the ranks save and stop. Continue with the same command and --resume."
    assert said.count(f"warning: {status['reason']}: {remedy}") == 1, said
    (only,) = published(folder / "a" / "checkpoints")
    assert json.loads((only / "manifest.json").read_text())["sequence"] == 1
    assert find(folder / "a" / "checkpoints", "ppo").number == status["iteration"]
    more = {"ppo.num_iterations": status["iteration"] + 1}
    run(tiny.run_settings(model, folder, **more), resume=True, loggers=())
    assert read_status(folder / "a")["status"] == "finished"


@pytest.mark.parametrize(
    ("command", "depth", "backend"),
    [
        pytest.param(TORCHRUN, 0, "torch", id="torchrun"),
        pytest.param(
            DEEPSPEED, 0, "deepspeed", id="deepspeed",
            marks=[pytest.mark.deepspeed, pytest.mark.slow],
        ),
        pytest.param(
            DEEPSPEED, 1, "deepspeed", id="that of deepspeed's node",
            marks=[pytest.mark.deepspeed, pytest.mark.slow],
        ),
    ],
)  # fmt: skip
def test_ranks_save_once_and_end_when_their_launcher_is_killed(command, depth, backend, tmp_path):
    model = tiny.save_model(tmp_path / "model")
    words = {**tiny.RUN, "model.path": model, "run.dir": tmp_path, "checkpoint.every": 0}
    words |= {"ppo.num_iterations": ENDLESS, "backend.name": backend}
    if backend == "deepspeed":
        command = [*command, str(free_port()), SCRIPT]
    with started(command, tmp_path, **words) as (launcher, below):
        assert len(below) >= 2 + depth
        os.kill((launcher.pid, below[0].pid)[depth], signal.SIGKILL)
        has_ended = until(lambda: all(map(is_gone, below)), LIMIT_SECONDS)
        assert has_ended, (tmp_path / "said").read_text()
    assert_saved_once(tmp_path, model)
