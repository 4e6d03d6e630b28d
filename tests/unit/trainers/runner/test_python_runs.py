"""A run that Python started: recorded by its names, and continued by Python alone."""

import io
import json
import logging
import shutil
from pathlib import Path

import pytest

import llmgym
from tests import tiny
from trainers.cli import main as cli
from trainers.config.files import read
from trainers.config.python_parts import RECORD, recorded
from trainers.errors import ConfigError
from trainers.loggers.console import ConsoleLogger
from trainers.loggers.jsonl import JsonlLogger
from trainers.run_dir.record import read_run, run_summary
from trainers.runner.run import run

WORDS = ("one", "two", "three", "four")


class Say(llmgym.SingleTurnEnv):
    """Pays for saying the word of the prompt."""

    def __init__(self, reward="exact"):
        super().__init__(llmgym.from_list(WORDS), reward=reward)


def brief(response, **columns):
    """Pay for few letters."""
    return 1.0 / (1 + len(response))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def started(model, tmp_path_factory):
    """A finished run of an environment and a reward from Python; its console as well."""
    folder, stream = tmp_path_factory.mktemp("runs"), io.StringIO()
    config = tiny.run_settings(model, folder, **{"eval.num_tasks": 2})
    run(config, env=Say, reward=brief, loggers=[ConsoleLogger(stream=stream), JsonlLogger()])
    return folder / "a", stream.getvalue()


@pytest.fixture
def again(started, tmp_path):
    """A copy of that run, and its settings with one iteration more."""
    shutil.copytree(started[0], tmp_path / "a", symlinks=True)
    more = {"run.dir": str(tmp_path), "ppo.num_iterations": 3}
    return read([tmp_path / "a" / "config.yaml"], more)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_record_settings_metrics_samples_and_list_carry_the_names(started):
    folder, printed = started
    assert [(one.role, one.name, one.file) for one in recorded(folder)] == [
        ("env", "Say", __file__),
        ("reward", "brief", __file__),
    ]
    record = read_run(folder)
    assert record.config.env.id == "python:Say"
    assert record.config.rewards[0].name == "python:brief"
    assert run_summary(record)["env"] == "python:Say"
    keys = {key for row in lines(folder / "metrics.jsonl") for key in row}
    assert "env/python:Say/reward" in keys
    assert "eval/python:Say/mean" in keys
    assert not [key for key in keys if "Arithmetic" in key]
    assert {row["env"] for row in lines(folder / "samples.jsonl")} == {"python:Say"}
    header = [line.split(",")[0] for line in printed.splitlines() if "python:" in line]
    assert header[:2] == ["env      python:Say", "reward   python:brief"]


def test_the_next_step_it_prints_is_the_call_that_continues_it(started):
    folder, printed = started
    (said,) = [line for line in printed.splitlines() if line.startswith("Next")]
    assert said.startswith(
        f"Next     trainers.run(read([Path('{folder}/config.yaml')]), env=Say, reward=brief, "
        "resume=True)  # env is Say of "
    )


def test_the_same_objects_continue_it_and_others_are_refused(again, tmp_path):
    def worse(response, **columns):
        return 0.0

    for given in ({}, {"env": Say}, {"env": Say, "reward": worse}, {"env": Say, "reward": "exact"}):
        with pytest.raises(ConfigError, match=r"reward(=|.*python:)brief"):
            run(again, **given, loggers=[], resume=True)
    result = run(again, env=Say, reward=brief, loggers=[], resume=True)
    assert result.metrics["train/episodes"] == 24  # of three iterations, two before


def test_a_corrected_function_continues_with_a_warning(again, caplog):
    def brief(response, **columns):
        return 2.0 / (1 + len(response))

    with caplog.at_level(logging.WARNING):
        run(again, env=Say, reward=brief, loggers=[], resume=True)
    assert "the source of reward python:brief has changed since the checkpoint" in caplog.text
    assert "python:Say has changed" not in caplog.text


def test_another_lambda_is_refused_since_nothing_else_tells_them_apart(model, tmp_path):
    config = tiny.run_settings(model, tmp_path, **{"ppo.num_iterations": 1})
    run(config, reward=lambda response: len(response) / 9, loggers=[])
    with pytest.raises(ConfigError, match="reward python:lambda has another source"):
        run(config, reward=lambda response: -len(response), loggers=[], resume=True)
    assert run(config, reward=lambda response: len(response) / 9, loggers=[], resume=True)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "-c", "{run}/config.yaml", "--resume"],
        ["train", "-c", "{run}/config.yaml", "--name", "other"],
        ["plan", "-c", "{run}/config.yaml"],
        ["eval", "{run}"],
        ["eval", "{run}/model", "--env", "llmgym/Arithmetic-v0"],
        ["play", "{run}"],
    ],
)
def test_every_verb_that_would_build_them_names_the_python_call(words, started, capsys):
    folder, _ = started
    assert cli.main([word.format(run=folder) for word in words]) == 2
    said = capsys.readouterr().err
    assert "was started from Python, which gave it" in said
    assert "reward=brief, resume=True)" in said


def test_a_start_that_names_another_reward_by_command_line_is_refused_as_well(again, capsys, model):
    folder = Path(again.run.dir)
    words = ["train", "--name", "a", "--run.dir", str(folder), "--model.path", str(model)]
    assert cli.main([*words, "--resume"]) == 2
    assert "was started from Python with env python:Say" in capsys.readouterr().err


def test_export_and_the_report_need_no_objects(started, tmp_path, capsys):
    folder, _ = started
    assert cli.main(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert cli.main(["report", str(folder)]) == 0
    assert cli.main(["runs", "list", str(folder.parent)]) == 0
    assert "python:Say" in capsys.readouterr().out


def test_a_start_by_command_line_leaves_no_record_of_python(model, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / RECORD).write_text("[]")
    run(tiny.run_settings(model, tmp_path, **{"ppo.num_iterations": 1}), loggers=[])
    assert not (tmp_path / "a" / RECORD).exists()
