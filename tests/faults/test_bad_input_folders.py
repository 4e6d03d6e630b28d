"""Run folders that exist, checkpoints that are damaged or foreign, disks that are full."""

import os
from pathlib import Path

import pytest

from tests.faults.conftest import SMALL
from tests.faults.savers import train_with_file_limit
from tests.processes import process
from trainers.config.files import read
from trainers.run_dir.record import lines, read_status

THREE = {"--ppo.num-iterations": 3, "--checkpoint.every": 1}


def kept():
    """Return the names of the checkpoints of runs/a."""
    return sorted(path.name for path in Path("runs/a/checkpoints").iterdir())


def everything(folder):
    """Return every file below a folder with its contents."""
    return {file: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


@pytest.fixture
def done(typed):
    """Leave a finished run of one iteration behind."""
    assert typed(THREE | {"--ppo.num-iterations": 1}).code == 0


def test_a_file_that_is_not_there_leaves_no_run_behind(typed):
    assert typed({"--envs.0.kwargs.path": "promts.jsonl"}).code == 2
    assert not Path("runs").exists()


def test_a_start_that_failed_is_corrected_and_typed_again(typed):
    assert typed({"--generation.max-prompt-tokens": 1}).code == 2
    assert read_status(Path("runs/a"))["status"] == "failed"
    assert typed().code == 0
    assert read_status(Path("runs/a"))["status"] == "finished"
    assert (Path("runs/a/logs/attempt_1/rank_0.log")).exists(), "what failed can still be read"


def test_a_run_that_exists_is_refused_with_the_three_ways_on_which_work(typed, refused, done):
    before = everything("runs/a")
    said = typed().said
    assert "runs/a exists (ppo 1/1, finished)" in said
    for way in ("--resume continues", "--clean moves it away", "--run.name a-2 starts another"):
        assert way in said
    assert everything("runs/a") == before
    assert typed({"--run.name": "a-2", "--name": None}).code == 0
    assert typed({"--ppo.num-iterations": 2}, "--resume").code == 0
    assert read_status(Path("runs/a"))["iteration"] == 2
    assert typed({}, "--clean").code == 0
    assert {path.name for path in Path("runs").iterdir()} == {"a", "a-2", "a.old-1"}


def test_a_resume_with_another_setting_is_refused_and_changes_no_file(typed, done):
    before = everything("runs/a")
    answer = typed({"--ppo.gamma": 0.5, "--ppo.num-iterations": 2}, "--resume")
    assert answer.code == 2
    assert "cannot resume runs/a: ppo.gamma 1.0 -> 0.5. Undo it" in answer.said
    assert "--run.name NAME" in answer.said
    assert everything("runs/a") == before


def test_a_damaged_checkpoint_is_passed_over_and_named(typed):
    assert typed(THREE).code == 0
    assert kept() == ["ppo_000001", "ppo_000002", "ppo_000003"]
    damage("ppo_000003")
    answer = typed(THREE | {"--ppo.num-iterations": 4}, "--resume")
    assert answer.code == 0
    assert "passed over runs/a/checkpoints/ppo_000003" in answer.said
    assert "is damaged" in answer.said
    assert kept()[-1] == "ppo_000004"


def damage(name):
    """Change one byte in the middle of a checkpoint's largest file."""
    files = Path("runs/a/checkpoints", name).iterdir()
    file = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_where_no_checkpoint_is_whole_nothing_starts_over_in_silence(typed, done):
    damage("ppo_000001")
    answer = typed({"--ppo.num-iterations": 2}, "--resume")
    assert answer.code == 1
    assert "none of the checkpoints in runs/a/checkpoints is whole" in answer.said
    assert "Restore one from a copy, or start anew with --clean" in answer.said
    assert "Traceback" not in answer.said
    assert typed({}, "--clean").code == 0


def test_a_checkpoint_of_another_run_is_refused_by_its_settings(typed, done):
    foreign = "runs/a/checkpoints/ppo_000001"
    answer = typed({"--name": "b", "--ppo.gamma": 0.5}, "--resume", foreign)
    assert answer.code == 2
    assert "ppo.gamma" in answer.said
    assert typed({"--name": "b", "--ppo.num-iterations": 2}, "--resume", foreign).code == 0
    assert read_status(Path("runs/b"))["iteration"] == 2


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("runs/a/checkpoints/ppo_000009", "no such folder"),
        ("runs/a/model", "its name is no checkpoint's"),
        ("ppo_000001", "manifest.json"),
    ],
)
def test_what_is_no_checkpoint_is_refused_before_anything_is_begun(
    typed, refused, done, path, says
):
    Path("ppo_000001").mkdir()
    Path("ppo_000001/pytorch_model.bin").write_bytes(b"x")
    before = everything("runs/a")
    said = refused({"--name": "b"}, "--resume", path, code=1)
    assert f"cannot resume from {path}: " in said
    assert says in said
    assert "A bare --resume takes the newest whole one" in said
    typed({"--ppo.num-iterations": 2}, "--resume", path)
    assert everything("runs/a") == before
    assert not Path("runs/b").exists()


@pytest.mark.parametrize("where", ["prompts.jsonl", "/proc/nowhere", "/dev/null"])
def test_a_place_that_cannot_be_written_is_named_with_the_setting(refused, where):
    said = refused({"--run.dir": where}, code=1)
    assert f"cannot write in {where}/a: " in said
    assert "--run.dir DIR" in said


@pytest.mark.parametrize("limit", [0, 4000])
def test_a_full_disk_costs_no_work_and_the_run_goes_on_from_there(place, typed, limit):
    given = SMALL | THREE | {"--ppo.num-iterations": 6}
    words = ["train", "prompts", *(str(word) for pair in given.items() for word in pair)]
    listed = "said.txt" if limit else os.devnull
    started = process(train_with_file_limit, place, words, limit, listed)
    started.start()
    started.join(timeout=120)
    said = Path(listed).read_text(encoding="utf-8")
    assert started.exitcode == 1
    assert "Traceback" not in said
    assert kept()[-1] == "ppo_000001", "what was saved is whole, and nothing half-made is left"
    assert not Path("runs/a/run.lock").exists()
    if limit:
        assert said.count("Tried again after the next iteration.") == 2, "two are forgiven"
        assert "/checkpoints/ppo_000004 (" in said
        assert "The checkpoints before it stand." in said
    answer = typed(THREE | {"--ppo.num-iterations": 6}, "--resume")
    assert answer.code == 0, answer.said
    assert kept()[-1] == "ppo_000006"
    steps = {line["train/global_step"] for line in lines(Path("runs/a/metrics.jsonl"))}
    assert steps == {*range(1, 7)}
    read([Path("runs/a/config.yaml")])


def test_a_model_that_could_not_be_written_at_the_end_is_written_by_a_resume(typed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("trainers.export.folders.fsync", _full)
        answer = typed(THREE)
    assert answer.code == 1
    assert "cannot write runs/a/model: No space left on device" in answer.said
    assert "go on with --resume" in answer.said
    assert kept()[-1] == "ppo_000003", "the work itself is safe"
    assert typed(THREE, "--resume").code == 0
    assert Path("runs/a/model/config.json").exists()


def _full(*_args, **_kwargs):
    raise OSError(28, "No space left on device")
