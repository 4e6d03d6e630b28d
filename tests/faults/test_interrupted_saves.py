"""A save that is killed, or runs out of disk, leaves the previous checkpoint or the new one."""

import shutil
import signal

import pytest

from tests.faults.savers import number_found, save, save_killed_at, save_with_file_limit
from tests.processes import process

LAST_EVENT = 200
FEWEST = 20
"""A save has more file operations than this: fewer kills would mean that the killing is broken."""


def run(target, *args):
    """Run a function in a process of its own; return its exit code."""
    started = process(target, *args)
    started.start()
    started.join(timeout=60)
    assert started.exitcode is not None, "the process hangs"
    return started.exitcode


def kill_everywhere(start, number):
    """Yield (event, folder) after a save of `number` from `start` was killed before each event."""
    for event in range(LAST_EVENT):
        folder = start.with_name(f"killed_at_{event}")
        shutil.copytree(start, folder)
        code = run(save_killed_at, folder, number, event)
        yield event, folder
        if code == 0:
            return
        assert code == -signal.SIGKILL
    raise AssertionError(f"not done after {LAST_EVENT} file operations")


def test_a_kill_before_any_file_operation_leaves_the_old_or_the_new_one(tmp_path):
    start = tmp_path / "start"
    save(start, 1)
    seen = []
    for event, folder in kill_everywhere(start, 2):
        seen.append(number_found(folder))
        assert seen[-1] in (1, 2), f"killed at {event}: {seen[-1]}"
    assert seen == sorted(seen)
    assert {*seen} == {1, 2}
    assert len(seen) > FEWEST


def test_a_kill_while_a_name_is_saved_again_leaves_it(tmp_path):
    start = tmp_path / "start"
    save(start, 1)
    seen = []
    for event, folder in kill_everywhere(start, 1):
        seen.append(number_found(folder))
        assert seen[-1] == 1, f"killed at {event}"
    assert len(seen) > FEWEST


def test_a_kill_in_the_first_save_leaves_nothing_or_all(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    seen = [number_found(folder) for _, folder in kill_everywhere(start, 1)]
    assert {*seen} == {None, 1}
    assert len(seen) > FEWEST


def test_the_save_after_a_kill_works_and_cleans_up(tmp_path):
    start = tmp_path / "start"
    save(start, 1)
    left = []
    for _, folder in kill_everywhere(start, 2):
        save(folder, 2)
        save(folder, 3)
        left.append([path.name for path in folder.iterdir()])
        assert left[-1] == ["ppo_000003"]
    assert len(left) > FEWEST


@pytest.mark.parametrize("limit", [0, 10, 1000, 100_000])
def test_a_full_disk_is_noticed_and_leaves_the_old_one(tmp_path, limit):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    assert run(save_with_file_limit, folder, 2, limit) == 3
    assert number_found(folder) == 1
    assert [path.name for path in folder.iterdir()] == ["ppo_000001"]
