"""Code that a run folder names runs unasked only where this user started that run with it."""

import json
import logging
import os
from pathlib import Path

import pytest

from llmgym.addresses import file_of
from llmgym.rewards.base import resolve, score_samples
from tests.unit.llmgym.samples import sample
from trainers.collect.environments import reward_of
from trainers.config.files import dump, read
from trainers.run_dir import trust
from trainers.run_dir.trust import named_code, note, untrusted


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A state folder of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "llmgym"


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "score.py"
    file.write_text("def score(response): return 1.0\n")
    return file


@pytest.fixture
def run(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    return tmp_path / "runs" / "a"


def settings(file, **changes):
    return read([], {"rewards.0.function": f"{file}:score", **changes})


def addresses(config, typed=(), run=Path("nowhere")):
    return [one.address for one in untrusted(run, config, typed)]


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"rewards.0.function": 'a b\'s/"c".py:fn'}, "rewards.0.function"),
        ({"rewards.0.function": "subprocess:Popen"}, "rewards.0.function"),
        ({"rewards.0.function": "llmgym.registry:load"}, "rewards.0.function"),
        ({"envs.0.id": "colorsys:my/Say-v0"}, "envs.0.id"),
        ({"envs.0.kwargs.wrap": [{"name": "os:system"}]}, "envs.0.kwargs.wrap.0.name"),
        ({"envs.0.kwargs.reward": {"function": "m.py:f"}}, "envs.0.kwargs.reward.function"),
        ({"eval.kwargs.reward": "m.py:f"}, "eval.kwargs.reward"),
        (
            {"rewards.0.name": "exact", "rewards.0.kwargs.inner": ["pkg.mod:Name"]},
            "rewards.0.kwargs.inner.0",
        ),
        (
            {"envs.0.kwargs.wrap": [{"name": "gymnasium:make", "id": "evil:X-v0"}]},
            "envs.0.kwargs.wrap.1",
        ),
    ],
)
def test_code_is_found_wherever_settings_name_it(changes, setting):
    found = {one.setting for one in named_code(read([], changes))}
    if setting == "envs.0.kwargs.wrap.1":
        assert found == {"envs.0.kwargs.wrap.0.name", "envs.0.kwargs.wrap.0.id"}
    else:
        assert found == {setting}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rewards.0.name": "math.boxed"},
        {"rewards.0.model": "some/model"},
        {"envs.0.id": "CartPole-v1", "run.kind": "control"},
        {"envs.0.kwargs.system": "Note: answer in words."},
        {"envs.0.kwargs.path": "https://host/rows.jsonl"},
    ],
)
def test_settings_that_lead_to_our_own_code_name_none(changes):
    assert named_code(read([], changes)) == []


def test_to_look_for_code_runs_none_of_it(tmp_path, monkeypatch):
    package = tmp_path / "planted"
    package.mkdir()
    for name in ("__init__.py", "inner.py"):
        (package / name).write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert file_of("planted.inner:fn") == package / "inner.py"
    assert file_of("planted:ns/Name-v0") == package / "__init__.py"
    assert [file_of(one) for one in ("planted.no:f", "sys:exit", "no.py:f")] == [None] * 3


def test_a_run_that_was_started_here_is_trusted_until_its_code_changes(file, run, home):
    config = settings(file)
    assert addresses(config, run=run) == [f"{file}:score"]
    note(run, config)
    assert addresses(config, run=run) == []
    assert home.stat().st_mode & 0o777 == (home / "runs").stat().st_mode & 0o777 == 0o700
    file.write_text("def score(response): return 2.0\n")
    assert addresses(config, run=run) == [f"{file}:score"]


def test_other_arguments_another_function_and_another_place_are_not_trusted(file, run, tmp_path):
    note(run, settings(file))
    assert addresses(settings(file, **{"rewards.0.kwargs.x": 1}), run=run)
    assert addresses(read([], {"rewards.0.function": f"{file}:main"}), run=run)
    assert addresses(settings(file), run=tmp_path / "runs" / "b")
    assert not addresses(settings(file), run=run)


def test_what_the_user_has_just_typed_needs_no_note(file):
    config = settings(file, **{"envs.0.id": "colorsys:my/Say-v0"})
    assert addresses(config, [f"{file}:score"]) == ["colorsys:my/Say-v0"]
    assert addresses(config, [f"{file}:score", "colorsys"]) == []
    assert len(addresses(config, ["color", "score"])) == 2


def test_a_file_that_is_not_there_cannot_run_and_is_left_to_its_own_error(tmp_path):
    assert addresses(settings(tmp_path / "gone.py")) == []


@pytest.mark.parametrize("harm", ["mode", "owner", "text", "inside"])
def test_a_note_that_others_may_have_written_does_not_count(harm, file, run, home, monkeypatch):
    if harm == "inside":
        monkeypatch.setenv("XDG_STATE_HOME", str(run))
    config = settings(file)
    note(run, config)
    (written,) = (Path(os.environ["XDG_STATE_HOME"]) / "llmgym" / "runs").iterdir()
    if harm == "mode":
        (home / "runs").chmod(0o777)
    if harm == "owner":
        monkeypatch.setattr(trust.os, "geteuid", lambda: os.getuid() + 1)
    if harm == "text":
        written.write_text(json.dumps({"settings": None, "code": []}))
    assert addresses(config, run=run) == [f"{file}:score"]


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_a_note_that_cannot_be_written_is_a_warning_and_ends_no_run(
    place, file, run, tmp_path, monkeypatch, caplog
):
    if place == "a file":
        (tmp_path / "state").write_text("")
    else:
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setattr(trust.os.path, "expanduser", lambda text: text)
    with caplog.at_level(logging.WARNING):
        note(run, settings(file))
    assert "needs --trust" in caplog.text
    assert addresses(settings(file), run=run) == [f"{file}:score"]


def test_a_run_that_names_no_code_leaves_no_note(run, home):
    note(run, read())
    assert not home.exists()


@pytest.mark.parametrize("name", ["a b", "it's", 'q"q', "two\nlines", "a:b", "$(id)"])
def test_a_reward_is_found_whatever_its_folder_is_called(name, tmp_path):
    (tmp_path / name).mkdir()
    file = tmp_path / name / "score.py"
    file.write_text("def score(response): return 1.0\n")
    (tmp_path / "config.yaml").write_text(dump(settings(file)), "utf-8")
    config = read([tmp_path / "config.yaml"])
    assert [one.file for one in named_code(config)] == [file]
    reward = resolve(reward_of(config, None))
    assert [one.value for one in score_samples(reward, [sample("5")])] == [1.0]
    reward.close()


def test_a_run_with_a_key_is_trusted_with_the_settings_that_its_folder_holds(file, run, tmp_path):
    key = {"rewards.0.kwargs.api_key": "sk-of-trust-4242", "rewards.0.kwargs.n": 2}
    config = settings(file, **key)
    note(run, config)
    (run / "config.yaml").write_text(dump(config), encoding="utf-8")
    kept = read([run / "config.yaml"])
    assert kept.rewards[0].kwargs["api_key"] == "(hidden)"
    assert addresses(kept, run=run) == []
    assert addresses(settings(file, **key | {"rewards.0.kwargs.api_key": "renewed"}), run=run) == []
    assert addresses(settings(file, **key | {"rewards.0.kwargs.n": 3}), run=run) != []
