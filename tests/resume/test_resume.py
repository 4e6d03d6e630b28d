"""An interrupted run that is resumed in a new process ends as one that never stopped, bit for bit.

Compared are weights, optimizer, random states, the collector's memory, evaluations and metrics.
"""

import json
import random
import shutil
import signal

import pytest

from tests.processes import process
from tests.resume.trainee import differences, left_behind, train
from trainers.checkpoint.loading import find
from trainers.run_dir.record import read_status

KINDS = ("text", "turns", "mixture", "lora", "control", "groups")
ITERATIONS = 4


def start(*args, **kwargs):
    started = process(train, *args, **kwargs)
    started.start()
    return started


def finish(started, *, code=0):
    started.join(timeout=120)
    assert started.exitcode == code


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Folders of runs that never stopped, by kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for started in [start(kind, folders[kind], ITERATIONS) for kind in KINDS]:
        finish(started)
    return folders


def assert_same_end(folder, other):
    assert differences(left_behind(folder), left_behind(other)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_that_is_compared_with_learns(uninterrupted, kind):
    metrics = left_behind(uninterrupted[kind])["metrics"]
    steps = [values for (sft, _, is_eval), values in metrics.items() if not sft and not is_eval]
    assert len(steps) == ITERATIONS
    assert all(values["policy/grad_norm"] > 0 for values in steps)
    assert len({values["loss/total"] for values in steps}) == ITERATIONS


@pytest.mark.parametrize("kind", KINDS)
def test_n_and_n_in_a_new_process_are_2n(uninterrupted, tmp_path, kind):
    finish(start(kind, tmp_path, ITERATIONS // 2))
    finish(start(kind, tmp_path, ITERATIONS, resume=True))
    assert_same_end(tmp_path, uninterrupted[kind])


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("text", signal.SIGTERM),
        ("control", signal.SIGTERM),
        ("control", signal.SIGINT),
        ("control", signal.SIGUSR1),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_from_there(uninterrupted, tmp_path, kind, number):
    # No checkpoint is due by count, so that it is the signal that saves.
    rare = {"checkpoint.every": 0}
    stop = (number, "ppo", 3)
    finish(start(kind, tmp_path, ITERATIONS, stop=stop, changes=rare))
    status = read_status(tmp_path / "a")
    assert (status["status"], status["iteration"]) == ("interrupted", 3)
    assert find(tmp_path / "a" / "checkpoints", "ppo").number == 3
    finish(start(kind, tmp_path, ITERATIONS, resume=True, changes=rare))
    assert read_status(tmp_path / "a")["status"] == "finished"
    assert_same_end(tmp_path, uninterrupted[kind])


def test_a_signal_in_the_supervised_stage_is_exact_too(uninterrupted, tmp_path):
    finish(start("text", tmp_path, ITERATIONS, stop=(signal.SIGTERM, "sft", 2)))
    assert read_status(tmp_path / "a")["stage"] == "sft"
    finish(start("text", tmp_path, ITERATIONS, resume=True))
    assert_same_end(tmp_path, uninterrupted["text"])


@pytest.mark.parametrize(("section", "step"), [("sft", 3), ("ppo", 3)])
def test_a_kill_right_after_a_step_loses_only_what_was_not_saved(
    uninterrupted, tmp_path, section, step
):
    stop = (signal.SIGKILL, section, step)
    finish(start("text", tmp_path, ITERATIONS, stop=stop), code=-signal.SIGKILL)
    finish(start("text", tmp_path, ITERATIONS, resume=True))
    assert_same_end(tmp_path, uninterrupted["text"])


def test_a_broken_newest_checkpoint_costs_an_iteration_and_no_bit(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted["control"], folder, symlinks=True)
    newest = find(folder / "a" / "checkpoints", "ppo").path
    damaged = bytearray((newest / "learner.rank_0.safetensors").read_bytes())
    damaged[-1] ^= 1
    (newest / "learner.rank_0.safetensors").write_bytes(damaged)
    finish(start("control", folder, ITERATIONS, resume=True))
    assert_same_end(folder, uninterrupted["control"])
    log = (folder / "a" / "logs" / "latest" / "rank_0.log").read_text()
    assert "ppo_000004: learner.rank_0.safetensors is damaged" in log


def test_a_given_checkpoint_is_the_one_that_is_continued(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted["control"], folder, symlinks=True)
    chosen = folder / "a" / "checkpoints" / "ppo_000002"
    finish(start("control", folder, ITERATIONS, resume=chosen))
    assert_same_end(folder, uninterrupted["control"])
    last = (folder / "a" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["attempt"] == 2


def test_other_settings_are_refused_and_nothing_is_lost(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted["control"], folder, symlinks=True)
    changed = {"ppo.gamma": 0.8}
    finish(start("control", folder, 8, resume=True, changes=changed), code=1)
    assert read_status(folder / "a")["status"] == "finished"
    assert_same_end(folder, uninterrupted["control"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_kills_at_random_times_change_nothing(uninterrupted, tmp_path, kind):
    rng = random.Random(0)
    kills = 0
    for _ in range(200):
        started = start(kind, tmp_path, ITERATIONS, resume=True)
        started.join(timeout=rng.uniform(0.05, 4.0) if kills < 20 else 120)
        if started.exitcode is None:
            started.kill()
            started.join(timeout=60)
            kills += 1
        elif kills < 20:
            assert started.exitcode == 0
            assert_same_end(tmp_path, uninterrupted[kind])
            shutil.rmtree(tmp_path / "a")
        else:
            break
    assert kills == 20
    assert_same_end(tmp_path, uninterrupted[kind])
