"""Which processes a rank must not outlive, and what it does when it has."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainers.distributed import launcher
from trainers.distributed.launcher import (
    continuing,
    is_lost,
    launchers,
    limit_spinning,
    share_cores,
)

WAITS = """
import time
from trainers.distributed.launcher import ends_with_launcher
with ends_with_launcher():
    print("waits", flush=True)
    time.sleep({seconds})
print("went on", flush=True)
time.sleep(1)
"""
STARTS = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    for name in (
        *(launcher.OF_TORCHRUN, launcher.OF_DEEPSPEED, "CROSS_SIZE"),
        *("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"),
    ):
        monkeypatch.delenv(name, raising=False)


def test_a_rank_that_a_shell_started_outlives_it(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launchers() == ()


def test_a_rank_of_torchrun_has_one_launcher(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launchers() == (os.getppid(),)


@pytest.mark.parametrize(("nodes", "number"), [(1, 2), (2, 1)])
def test_a_rank_of_deepspeed_has_that_of_its_node_and_alone_the_command(nodes, number, monkeypatch):
    monkeypatch.setenv("CROSS_RANK", "0")
    monkeypatch.setenv("CROSS_SIZE", str(nodes))
    found = launchers()
    assert (len(found), found[0]) == (number, os.getppid())
    monkeypatch.setattr(os, "getppid", os.getpid)  # one step nearer: the chain moves up by one
    assert launchers()[1:] == (found[0],) * (number - 1)


def test_a_launcher_that_vanishes_while_it_is_looked_at_is_gone(monkeypatch):
    monkeypatch.setenv("CROSS_RANK", "0")
    monkeypatch.setenv("CROSS_SIZE", "1")
    monkeypatch.setattr(os, "getppid", lambda: 2**22 + 1)  # above every process's number
    assert launchers() == (2**22 + 1,)


@pytest.mark.parametrize(("ranks", "threads"), [("1", "12"), ("5", "2"), ("16", "1")])
def test_ranks_of_deepspeed_share_the_cores_that_their_node_gives(ranks, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(12)})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_cores()
    assert "OMP_NUM_THREADS" not in os.environ, "no launcher: torch takes what there is"
    monkeypatch.setenv("LOCAL_SIZE", ranks)
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "7", "what is said counts"


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(given, left, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == left


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_rank_that_waits_for_others_ends_with_its_launcher_alone(is_killed):
    words = [sys.executable, "-c", STARTS, WAITS.format(seconds=60 if is_killed else 2)]
    variables = {**os.environ, launcher.OF_TORCHRUN: "none"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=variables, text=True, **pipes) as started:
        assert started.stdout.readline() == "waits\n"
        began = time.monotonic()
        if is_killed:
            started.send_signal(signal.SIGKILL)
            said = started.stderr.read()  # until the rank, which has it as well, has ended
            assert "the launcher is gone before the run began" in said
            assert time.monotonic() - began < 30
        else:
            assert started.stdout.readline() == "went on\n"
            started.stdin.close()
            assert not started.stderr.read()


def test_a_rank_without_a_launcher_has_none_to_lose(monkeypatch):
    assert not is_lost()
    monkeypatch.setattr(launcher, "INITIAL_LAUNCHERS", (11, 12))
    assert is_lost()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "llmgym train -c a/config.yaml --resume"),
        (
            {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc_per_node 2 my/train_ppo.py -c a/config.yaml --resume",
        ),
        (
            {"CROSS_RANK": "0", "CROSS_SIZE": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "4"},
            "deepspeed --num_accelerators 4 my/train_ppo.py -c a/config.yaml --resume",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "the same command on every host, with --resume",
        ),
        ({"WORLD_SIZE": "2"}, "the same command on every host, with --resume"),  # srun, or a shell
    ],
)
def test_what_goes_on_is_started_as_the_run_was(variables, says, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "INITIAL_LAUNCHERS", launchers())
    monkeypatch.setattr(sys, "argv", ["my/train_ppo.py", "quickstart"])
    assert continuing(Path("a")) == says


@pytest.mark.parametrize("name", ["a b", "it's", 'q"q', "$(id)", "two\nlines", "-c"])
def test_what_goes_on_is_one_command_whatever_the_folder_is_called(name, monkeypatch):
    monkeypatch.setattr(launcher, "INITIAL_LAUNCHERS", ())
    words = ["llmgym", "train", "-c", f"{name}/config.yaml", "--resume"]
    assert shlex.split(continuing(Path(name))) == words
