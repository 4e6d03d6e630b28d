"""A lock that a killed build has left is named before a start would wait for it."""

import os
import time

import pytest

from trainers.backends.zero import builds
from trainers.backends.zero import setup as zero
from trainers.backends.zero.builds import STALE_SECONDS, check_locks, stale_locks
from trainers.cli import main as cli
from trainers.config.files import read
from trainers.distributed.collectives import World
from trainers.errors import BackendError


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder of builds with two locks of killed ones, and one of a build under way."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    old, deep, young = (
        tmp_path / "cpu_adam" / "lock",
        tmp_path / "py311_cu128" / "fused_adam" / "lock",
        tmp_path / "async_io" / "lock",
    )
    for lock in (old, deep, young):
        lock.parent.mkdir(parents=True)
        lock.touch()
    past = time.time() - STALE_SECONDS - 1
    for lock in (old, deep):
        os.utime(lock, (past, past))
    return [old, deep]


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A folder of builds with the lock of one that began just now."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    file = tmp_path / "cpu_adam" / "lock"
    file.parent.mkdir()
    file.touch()
    return file


def test_only_old_locks_are_stale_and_the_message_removes_them(locked):
    assert stale_locks() == locked
    with pytest.raises(BackendError, match="wait without") as raised:
        check_locks()
    assert str(raised.value).endswith(f"rm {locked[0]} {locked[1]}")
    for lock in locked:
        lock.unlink()
    assert not stale_locks()


def test_an_old_lock_that_a_process_here_holds_is_not_stale(locked):
    with locked[0].open("rb"):
        assert stale_locks() == locked[1:]
    assert stale_locks() == locked


def test_a_young_lock_of_another_machine_is_waited_for(lock, monkeypatch, caplog):
    def end(_):
        if caplog.records:
            lock.unlink()

    monkeypatch.setattr(builds.time, "sleep", end)
    check_locks()
    (line,) = caplog.messages
    assert "waiting up to 600 s" in line
    assert line.endswith(f"rm {lock}")


def test_a_young_lock_is_refused_as_soon_as_it_is_stale(lock, monkeypatch):
    monkeypatch.setattr(builds, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(builds, "_LOOK_SECONDS", 0.05)
    with pytest.raises(BackendError, match="wait without"):
        check_locks()
    assert time.time() - lock.stat().st_mtime > 0.2


def test_a_young_lock_that_a_process_here_holds_is_left_to_torch(lock, caplog):
    with lock.open("rb"):
        check_locks()
    assert not caplog.records


def test_the_doctor_names_them(locked, capsys):
    cli.main(["doctor"])
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "builds" in one]
    assert line.startswith("warn")
    assert f"rm {locked[0]} {locked[1]}" in line


@pytest.mark.deepspeed
def test_a_start_that_builds_is_refused_and_one_on_a_cpu_is_not(locked, monkeypatch):
    config = read([], {"backend.name": "deepspeed"})
    zero.check_zero(config, World())
    monkeypatch.setattr(zero.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(zero, "import_deepspeed", lambda: None)
    with pytest.raises(BackendError, match="a build of an extension was killed"):
        zero.check_zero(config, World())
