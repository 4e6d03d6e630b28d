"""The lock of a run: beating it is respected, still it is taken over, and by one start alone."""

import json
import logging
import os
import socket
import threading
import time

import pytest

from trainers.errors import CheckpointError
from trainers.run_dir import lock as run_lock
from trainers.run_dir.lock import RunLock

ELSEWHERE = json.dumps({"host": "elsewhere", "pid": 1})
SOON = 30.0


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STILL_FOR", 0.5)
    monkeypatch.setattr(run_lock, "LOCK_POLL_SECONDS", 0.02)
    monkeypatch.setattr(run_lock, "BEATS_EVERY", 0.05)
    return tmp_path / "run.lock"


def wait_for(lock):
    """Look until the lock is free."""
    while not lock.is_free():
        pass


def until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def held_elsewhere(file, monkeypatch):
    """Return the lock of a start on another host, taken and kept."""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        lock = RunLock(file)
    lock.take()
    lock.keep()
    return lock


def test_no_lock_is_waited_for_by_nobody(file, monkeypatch):
    monkeypatch.setattr(run_lock, "STILL_FOR", 1000.0)
    monkeypatch.setattr(run_lock, "LOCK_POLL_SECONDS", 1000.0)
    assert RunLock(file).is_free()


def test_a_lock_of_this_host_is_judged_at_the_first_look(file, monkeypatch):
    monkeypatch.setattr(run_lock, "LOCK_POLL_SECONDS", 1000.0)
    file.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid()}))
    with pytest.raises(CheckpointError, match=rf"in use by process {os.getppid()} on"):
        RunLock(file).is_free()
    assert file.exists()


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        (ELSEWHERE, "process 1 on elsewhere"),
        ("", "process 0 on an unknown host"),
        ("[]", "process 0 on an unknown host"),
        ("{", "process 0 on an unknown host"),
    ],
)
def test_a_still_lock_that_cannot_be_judged_is_watched_and_taken_over(file, text, whose, caplog):
    file.write_text(text)
    began = time.monotonic()
    wait_for(lock := RunLock(file))
    assert time.monotonic() - began >= run_lock.STILL_FOR
    lock.take()
    assert f"is of {whose}: watched for 0.5 s" in caplog.text
    assert f"{file} is stale: {whose} did not touch it for 0.5 s; taken over" in caplog.text
    assert json.loads(file.read_text())["pid"] == os.getpid()


def test_one_look_is_short_so_that_ranks_never_wait_for_all_of_them(file, monkeypatch):
    monkeypatch.setattr(run_lock, "STILL_FOR", 1000.0)
    file.write_text(ELSEWHERE)
    lock = RunLock(file)
    assert [lock.is_free() for _ in range(5)] == [False] * 5


def test_a_beating_lock_of_another_host_is_refused_at_the_first_beat(file, monkeypatch):
    monkeypatch.setattr(run_lock, "STILL_FOR", 1000.0)
    owner = held_elsewhere(file, monkeypatch)
    with pytest.raises(
        CheckpointError, match=rf"in use by process {os.getpid()} on elsewhere\..* remove {file}"
    ):
        wait_for(RunLock(file))
    assert file.exists()
    owner.release()
    assert not file.exists()


def test_clocks_of_two_hosts_need_not_agree(file):
    file.write_text(ELSEWHERE)
    for seconds in (-1e6, 1e6):
        os.utime(file, (time.time() + seconds,) * 2)
        lock = RunLock(file)
        assert not lock.is_free()
        assert file.exists()


def test_a_lock_that_its_owner_gives_back_is_free_at_once(file, monkeypatch):
    monkeypatch.setattr(run_lock, "STILL_FOR", 1000.0)
    file.write_text(ELSEWHERE)
    lock = RunLock(file)
    assert not lock.is_free()
    file.unlink()
    assert lock.is_free()


def test_of_many_that_wait_at_once_one_takes_the_lock(file):
    for _ in range(5):
        file.write_text(ELSEWHERE)
        locks = [RunLock(file) for _ in range(8)]
        got, refused = [], []

        def start(lock, got=got, refused=refused):
            try:
                wait_for(lock)
                lock.take()
                got.append(lock)
            except CheckpointError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=start, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert (len(got), len(refused)) == (1, 7), refused
        got[0].release()
        assert not list(file.parent.iterdir())


def test_one_that_was_slow_to_take_over_leaves_the_lock_of_the_faster_one(file, monkeypatch):
    file.write_text(ELSEWHERE)
    slow, fast = RunLock(file), RunLock(file)
    monkeypatch.setattr(run_lock, "STILL_FOR", 0.0)
    assert not slow.is_free()
    assert not fast.is_free()
    look = slow._look

    def overtaken():
        seen = look()
        if seen is not None and seen.text == ELSEWHERE:
            wait_for(fast)
            fast.take()
        return seen

    monkeypatch.setattr(slow, "_look", overtaken)
    with pytest.raises(CheckpointError, match="was taken by another run just now"):
        slow.is_free()
    fast.release()
    assert not file.exists(), "the faster one still held it"


def test_a_take_over_that_was_killed_is_named(file):
    file.write_text(ELSEWHERE)
    guard = file.with_suffix(".taking")
    guard.touch()
    with pytest.raises(CheckpointError, match=rf"just now\. If not, remove {guard}\."):
        wait_for(RunLock(file))
    assert file.read_text() == ELSEWHERE


def test_an_owner_that_lost_the_lock_says_so_and_leaves_it_alone(file, caplog):
    lock = RunLock(file)
    lock.take()
    lock.keep()
    other = file.with_name("other")
    other.write_text(ELSEWHERE)
    os.utime(other, (1, 1))
    other.replace(file)
    until(lambda: not lock._beats.is_alive())
    assert "no longer of this start" in caplog.text
    assert file.stat().st_mtime == 1
    lock.release()
    assert file.read_text() == ELSEWHERE


def test_a_beat_that_fails_is_said_and_the_next_one_tried(file, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    lock = RunLock(file)
    lock.take()
    touched = file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(run_lock.os, "utime", lambda _: (_ for _ in ()).throw(OSError(116, "Stale")))
        lock.keep()
        until(lambda: "could not touch" in caplog.text)
    until(lambda: file.stat().st_mtime_ns > touched)
    lock.release()
    assert not file.exists()
