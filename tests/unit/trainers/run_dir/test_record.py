"""A run folder, read: the last attempt counts, a dead run is told, a damaged one is named."""

import json
import os
import socket

import pytest

from trainers.config import Config
from trainers.config.files import dump, preset, read
from trainers.errors import ConfigError
from trainers.run_dir.record import (
    curves,
    folder_size,
    held_out_interval,
    lines,
    read_run,
    run_summary,
)


def write(run, *records, tail=""):
    text = "".join(json.dumps(one) + "\n" for one in records)
    (run / "metrics.jsonl").write_text(text + tail, encoding="utf-8")


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(Config()), "utf-8")
    return folder


def status(run, **said):
    (run / "status.json").write_text(json.dumps(said), "utf-8")


def test_a_step_seen_twice_counts_as_the_last_attempt_saw_it(run_dir):
    write(
        run_dir,
        {"attempt": 1, "train/global_step": 1, "objective/scores": 0.1},
        {"attempt": 1, "train/global_step": 2, "objective/scores": 0.2, "objective/kl": "nan"},
        {"attempt": 2, "train/global_step": 2, "objective/scores": 0.9},
        {"attempt": 2, "sft/step": 7, "sft/loss": 1.0},
        tail='{"attempt": 2, "train/gl',
    )
    record = read_run(run_dir)
    assert record.curves["objective/scores"] == {1: 0.1, 2: 0.9}
    assert record.curves["sft/loss"] == {7: 1.0}
    assert "objective/kl" not in record.curves
    assert record.unreadable == 1
    assert record.last("objective/scores") == 0.9
    assert record.last("objective/entropy") is None


@pytest.mark.parametrize("junk", ["5", "[]", "null", "{", "\udcff", '"x"'])
def test_what_is_no_record_is_left_out_and_counted(run_dir, junk):
    good = json.dumps({"train/global_step": 1, "objective/scores": 0.1})
    text = f"{junk}\n\n{good}\n".encode("utf-8", "surrogateescape")
    (run_dir / "metrics.jsonl").write_bytes(text)
    assert read_run(run_dir).unreadable == 1
    assert [*lines(run_dir / "metrics.jsonl")] == [json.loads(good)]


def test_a_record_without_a_step_and_what_is_not_finite_draw_nothing():
    assert curves([{"objective/scores": 1.0}, {"train/global_step": 1, "a/b": float("inf")}]) == {
        "train/global_step": {1: 1}
    }


def test_a_folder_that_is_not_there_is_told_with_the_way_to_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no run folder .*x\. .*\nllmgym runs list"):
        read_run(tmp_path / "x")


def test_a_folder_that_is_no_run_is_told_what_it_lacks(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run folder: it has no config\.yaml"):
        read_run(tmp_path)


def test_a_part_of_a_run_is_told_the_run(run_dir):
    (run_dir / "model").mkdir()
    with pytest.raises(ConfigError, match=rf"is a part of a run\. Name the run itself: {run_dir}$"):
        read_run(run_dir / "model")


def test_figures_of_which_nothing_can_be_read_are_an_error_and_stay(run_dir):
    (run_dir / "metrics.jsonl").write_bytes(b"\x00\xff\n" * 3)
    with pytest.raises(ConfigError) as error:
        read_run(run_dir)
    said = str(error.value)
    assert "damaged: none of its 3 lines is a record. Nothing was changed." in said
    assert said.endswith(f"mv {run_dir}/metrics.jsonl {run_dir}/metrics.damaged")
    assert (run_dir / "metrics.jsonl").read_bytes() == b"\x00\xff\n" * 3


def test_figures_that_are_a_folder_are_an_error(run_dir):
    (run_dir / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        read_run(run_dir)


def test_settings_that_do_not_load_are_named_with_file_and_line(run_dir):
    (run_dir / "config.yaml").write_text("ppo:\n  gama: 1.0\n", "utf-8")
    with pytest.raises(ConfigError, match=r"ppo\.gama is not a setting .*config\.yaml, line 2"):
        read_run(run_dir)


def test_a_run_that_says_running_is_killed_where_its_process_is_gone(run_dir):
    status(run_dir, status="running")
    assert read_run(run_dir).state == "killed"
    lock = {"host": socket.gethostname(), "pid": os.getpid()}
    (run_dir / "run.lock").write_text(json.dumps(lock), "utf-8")
    assert read_run(run_dir).state == "running"
    (run_dir / "run.lock").write_text(json.dumps({**lock, "pid": 2**22 + 1}), "utf-8")
    assert read_run(run_dir).state == "killed"
    (run_dir / "run.lock").write_text(json.dumps({"host": "another", "pid": 1}), "utf-8")
    assert read_run(run_dir).state == "running"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "odd"}'])
def test_a_status_that_says_nothing_is_unknown(run_dir, text):
    (run_dir / "status.json").write_text(text, "utf-8")
    assert read_run(run_dir).state == "unknown"


def test_the_interval_is_of_one_environment_only():
    one = {"eval/a/ci_low": {3: 0.1}, "eval/a/ci_high": {3: 0.2}}
    assert held_out_interval(one, 3) == (0.1, 0.2)
    assert held_out_interval(one, 4) is None
    assert (
        held_out_interval({**one, "eval/b/ci_low": {3: 0.1}, "eval/b/ci_high": {3: 0.2}}, 3) is None
    )


@pytest.mark.parametrize(
    ("settings", "stage", "kind"),
    [
        ([], "ppo", "ppo"),
        ([preset("cartpole")], "ppo", "control"),
        ([], "reward_model", "reward_model"),
    ],
)
def test_a_summary_says_what_kind_of_run_it_is(run_dir, settings, stage, kind):
    config = read(settings, {} if stage == "ppo" else {"ppo.num_iterations": 0})
    (run_dir / "config.yaml").write_text(dump(config), "utf-8")
    status(run_dir, status="finished", stage=stage, iteration=3, num_iterations=9)
    found = run_summary(read_run(run_dir))
    assert (found["kind"], found["state"], found["iteration"]) == (kind, "finished", 3)
    assert (found["env"] is None) == (kind == "reward_model")
    assert found["reward"] is None
    assert found["bytes"] == sum(one.stat().st_size for one in run_dir.iterdir())


def test_links_count_for_no_bytes(run_dir):
    before = folder_size(run_dir)
    (run_dir / "latest").symlink_to(run_dir)
    (run_dir / "gone").symlink_to(run_dir / "nothing")
    assert folder_size(run_dir) == before
