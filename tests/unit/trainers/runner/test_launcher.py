"""Which processes a rank must not outlive, and what it does when it has."""

import os

import pytest

from trainers.runner import launcher
from trainers.runner.launcher import launchers


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    for name in (launcher.OF_TORCHRUN, launcher.OF_DEEPSPEED, "CROSS_SIZE"):
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
