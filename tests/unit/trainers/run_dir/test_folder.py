"""The run folder: claimed once, described, and free of secrets."""

import errno
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from trainers.checkpoint.identity import same_everywhere
from trainers.config import Config, EnvConfig, EvalConfig, RunConfig, SFTConfig
from trainers.config.files import read
from trainers.config.ppo import PPOConfig
from trainers.distributed.collectives import World
from trainers.errors import BackendError, CheckpointError, ConfigError
from trainers.run_dir import folder as run_folder
from trainers.run_dir.folder import open_run
from trainers.run_dir.record import read_status

SECRET = "canary-9f8e7d6c"


def config(tmp_path, name="a"):
    return Config(run=RunConfig(name=name, dir=str(tmp_path)))


def opened(tmp_path, *, resume=False, clean=False, command=("llmgym", "train"), world=None):
    return open_run(
        config(tmp_path), resume=resume, clean=clean, command=command, world=world or World()
    )


def finished(tmp_path, **facts):
    folder = opened(tmp_path)
    folder.set_status("interrupted", **facts)
    folder.close()
    return folder


def test_a_new_run_describes_itself(tmp_path):
    folder = opened(tmp_path)
    folder.close()
    assert folder.path == tmp_path / "a"
    assert read([folder.path / "config.yaml"]) == config(tmp_path)
    assert (folder.path / "command.txt").read_text() == "attempt 1: llmgym train\n"
    assert "torch: " in (folder.path / "environment.txt").read_text()
    assert folder.checkpoints.stat().st_mode & 0o777 == 0o700
    assert os.readlink(folder.path / "logs" / "latest") == "attempt_1"


def test_an_existing_run_is_refused_with_what_it_is_and_the_three_ways_on(tmp_path):
    finished(tmp_path, stage="ppo", iteration=80, num_iterations=200)
    with pytest.raises(
        ConfigError,
        match=r"a exists \(ppo 80/200, interrupted\)\. --resume continues, --clean moves it away, "
        r"--run\.name a-2",
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    "left", ["metrics.jsonl", "base/x", "checkpoints/ppo_000001/x", "mine.txt"]
)
def test_a_folder_with_anything_in_it_is_never_used_again_by_itself(tmp_path, left):
    file = finished(tmp_path).path / left
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with pytest.raises(ConfigError, match=r"a exists \(interrupted\)"):
        opened(tmp_path)


def test_a_start_that_failed_before_its_first_step_does_not_block_the_next(tmp_path):
    folder = opened(tmp_path)
    folder.set_status("failed", reason="a misspelt name")
    folder.close()
    again = opened(tmp_path)
    again.close()
    assert (again.path, again.attempt) == (folder.path, 2)
    assert folder.log_file.exists(), "the log of the failure stays"


def resumed_with(tmp_path, **changes):
    folder = open_run(
        replace(config(tmp_path), **changes), resume=True, clean=False, command=(), world=World()
    )
    folder.close()


def test_a_resume_with_other_settings_is_refused_before_anything_is_written(tmp_path):
    path = finished(tmp_path).path
    (path / "checkpoints" / "ppo_000001").mkdir()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=r"cannot resume .*ppo\.gamma 1\.0 -> 0\.9\. Undo it"):
        resumed_with(tmp_path, ppo=PPOConfig(gamma=0.9))
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    resumed_with(tmp_path, eval=EvalConfig(every=3))


def test_what_ppo_starts_from_is_not_continued_with_settings_that_would_change_it(tmp_path):
    (finished(tmp_path).path / "base").mkdir()
    with pytest.raises(ConfigError, match=r"sft\.num_epochs 0 -> 4"):
        resumed_with(tmp_path, sft=SFTConfig(num_epochs=4))
    resumed_with(tmp_path, ppo=PPOConfig(gamma=0.9))


def test_a_setting_that_was_hidden_fits_any_value(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    secret = (EnvConfig(kwargs={"token": SECRET}),)
    open_run(
        replace(config(tmp_path), envs=[*secret]), resume=False, clean=False, command=(),
        world=World(),
    ).close()  # fmt: skip
    (tmp_path / "a" / "checkpoints" / "ppo_000001").mkdir()
    resumed_with(tmp_path, envs=[*secret])


def test_resume_continues_in_the_same_folder_as_the_next_attempt(tmp_path):
    finished(tmp_path)
    folder = opened(tmp_path, resume=True, command=["llmgym", "train", "--resume"])
    folder.close()
    assert folder.attempt == 2
    assert (folder.path / "command.txt").read_text().splitlines() == [
        "attempt 1: llmgym train",
        "attempt 2: llmgym train --resume",
    ]
    assert os.readlink(folder.path / "logs" / "latest") == "attempt_2"


def test_resume_without_a_run_starts_one_and_says_so(tmp_path, caplog):
    opened(tmp_path, resume=True).close()
    assert "starts at 0" in caplog.text


def test_clean_moves_the_old_run_away_and_keeps_it(tmp_path):
    finished(tmp_path)
    (tmp_path / "a" / "mine.txt").touch()
    for number in (1, 2):
        opened(tmp_path, clean=True).close()
        assert (tmp_path / f"a.old-{number}").is_dir()
    assert (tmp_path / "a.old-1" / "mine.txt").exists()
    assert not (tmp_path / "a" / "mine.txt").exists()


def test_resume_and_clean_contradict(tmp_path):
    with pytest.raises(ConfigError, match="give one of them"):
        opened(tmp_path, resume=True, clean=True)


@pytest.mark.parametrize("how", [{"resume": True}, {"clean": True}])
def test_a_run_in_use_is_neither_continued_nor_moved(tmp_path, how):
    folder = opened(tmp_path)
    other = os.getppid()
    (folder.path / "run.lock").write_text(json.dumps({"host": socket.gethostname(), "pid": other}))
    with pytest.raises(CheckpointError, match=rf"in use by process {other} on .*run\.lock"):
        opened(tmp_path, **how)
    assert json.loads((folder.path / "run.lock").read_text())["pid"] == other
    folder.close()
    assert (folder.path / "run.lock").exists(), "it was another's to remove"
    (folder.path / "run.lock").unlink()
    opened(tmp_path, **how).close()
    assert not (folder.path / "run.lock").exists()


def dead_process():
    """Return the id of a process that has ended."""
    return int(
        subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


@pytest.mark.parametrize("owner", [dead_process, os.getpid])
def test_a_stale_lock_is_named_and_taken_over(tmp_path, caplog, owner):
    pid = owner()
    lock = finished(tmp_path).path / "run.lock"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": pid}))
    opened(tmp_path, resume=True).close()
    assert f"process {pid} is gone" in caplog.text


def test_a_refused_start_gives_the_lock_back(tmp_path):
    path = finished(tmp_path, iteration=1).path
    with pytest.raises(ConfigError, match="exists"):
        opened(tmp_path)
    assert not (path / "run.lock").exists()


def test_a_run_that_is_moved_away_takes_no_lock_along(tmp_path):
    finished(tmp_path)
    folder = opened(tmp_path, clean=True)
    assert not (tmp_path / "a.old-1" / "run.lock").exists()
    assert (folder.path / "run.lock").exists()
    folder.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write in .*file/a: .*--run\.dir"):
        opened(tmp_path / "file")


def test_a_failed_start_leaves_no_lock(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "_environment", lambda _: (_ for _ in ()).throw(OSError(28, "")))
        with pytest.raises(CheckpointError, match="cannot write"):
            opened(tmp_path)
    opened(tmp_path, resume=True).close()


def test_other_ranks_follow_and_write_their_log_only(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "from_main", lambda _: 3)
    folder = opened(tmp_path, world=World(rank=1, size=2))
    folder.set_status("failed")
    folder.close()
    files = [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()]
    assert files == ["a/logs/attempt_3/rank_1.log"]


def test_other_ranks_raise_what_rank_0_raised(tmp_path, monkeypatch):
    def raised(_):
        raise ConfigError("said on rank 0")

    monkeypatch.setattr(run_folder, "from_main", raised)
    with pytest.raises(ConfigError, match="said on rank 0"):
        opened(tmp_path, world=World(rank=1, size=2))


def test_ranks_that_differ_are_named(monkeypatch):
    others = {"settings": "b", "data": "x"}
    monkeypatch.setattr("trainers.checkpoint.identity.gather", lambda mine: [mine, mine, others])
    with pytest.raises(BackendError, match="rank 0 and rank 2 differ: settings a and b"):
        same_everywhere(settings="a", data="x")


def test_a_copy_of_a_run_in_which_the_link_became_a_folder_can_be_continued(tmp_path):
    path = finished(tmp_path).path
    (path / "logs" / "latest").unlink()
    (path / "logs" / "latest").mkdir()
    opened(tmp_path, resume=True).close()
    assert (path / "logs" / "attempt_2").is_dir()


def test_progress_is_shown_at_most_once_a_second_and_an_end_always(tmp_path, monkeypatch):
    folder = opened(tmp_path)
    now = [1000.0]
    monkeypatch.setattr("trainers.run_dir.folder.time.monotonic", lambda: now[0])
    shown = []
    for iteration, seconds in enumerate([0.0, 0.4, 0.4, 0.4, 5.0, 0.1], start=1):
        now[0] += seconds
        folder.show_progress(stage="ppo", iteration=iteration)
        shown.append(read_status(folder.path)["iteration"])
    assert shown == [1, 1, 1, 4, 5, 5]
    folder.set_status("failed", iteration=6)
    folder.close()
    assert read_status(folder.path)["iteration"] == 6


def test_status_is_replaced_whole(tmp_path):
    folder = opened(tmp_path)
    folder.set_status("running", stage="ppo", iteration=1)
    folder.set_status("failed", reason="it broke")
    folder.close()
    status = read_status(folder.path)
    assert (status["status"], status["reason"]) == ("failed", "it broke")
    assert "iteration" not in status
    assert not [file for file in folder.path.iterdir() if file.name.startswith(".status")]


def test_a_broken_status_reads_as_none(tmp_path):
    assert read_status(tmp_path) == {}
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path) == {}


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "status.json", "command.txt"])
def test_a_folder_where_a_file_belongs_is_refused_before_anything_is_loaded(name, tmp_path):
    file = finished(tmp_path).path / name
    file.unlink(missing_ok=True)
    file.mkdir()
    with pytest.raises(ConfigError, match=rf"{name} is a folder.*\nmv .*{name}\.moved$"):
        opened(tmp_path, resume=True)
    assert not (tmp_path / "a" / "run.lock").exists()


@pytest.mark.parametrize(
    ("settings", "left", "is_refused"),
    [
        ({}, ["model"], True),
        ({}, ["model", "checkpoints/sft_000009"], True),
        ({}, ["model", "checkpoints/ppo_000009"], False),
        ({}, ["best"], False),  # stopped before its first checkpoint
        ({"ppo": PPOConfig(num_iterations=0)}, ["model", "base"], False),
        ({"ppo": PPOConfig(num_iterations=0)}, ["model"], True),
    ],
)
def test_a_model_whose_checkpoints_are_gone_is_not_begun_again(
    settings, left, is_refused, tmp_path
):
    folder = opened(tmp_path)
    folder.set_status("failed", stage="ppo", iteration=9, num_iterations=9)
    folder.close()
    for name in left:
        (folder.path / name).mkdir()
    now = replace(config(tmp_path), **settings)
    arguments = {"clean": False, "command": ["train"], "world": World()}
    if is_refused:
        with pytest.raises(
            ConfigError, match=r"has trained \(ppo 9/9, failed\), and no checkpoint"
        ):
            open_run(now, resume=True, **arguments)
    else:
        open_run(now, resume=True, **arguments).close()
    open_run(now, resume=tmp_path / "named", **arguments).close()  # one that was named is found


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder.Path, "write_text", full)
    with pytest.raises(CheckpointError, match=r"No space left on device, .*config\.yaml"):
        opened(tmp_path)
