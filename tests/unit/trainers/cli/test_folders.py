"""Settings taken from a run folder: a moved run, lost checkpoints, code of a stranger."""

import os
import shutil
import sys

import pytest

from llmgym.rewards.base import _resolved
from tests import tiny
from trainers.cli import main as cli
from trainers.config.files import read
from trainers.loggers.jsonl import JsonlLogger
from trainers.runner.run import run

REWARD = """
from pathlib import Path
Path({ran!r}).touch()

def score(response, **columns):
    return sum(map(ord, response)) % 11 / 10
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run whose reward is a file of its user."""
    place = tmp_path_factory.mktemp("place")
    model, reward = tiny.save_model(place / "m"), place / "score.py"
    reward.write_text(REWARD.format(ran=str(place / "ran")))
    changes = {"rewards.0.function": f"{reward}:score", "rewards.0.isolated": False}
    run(
        tiny.run_settings(model, place / "runs", **changes, **{"ppo.num_iterations": 1}),
        loggers=[JsonlLogger()],
    )
    return place


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """Work beside that run, whose reward's file is as it was; `ran` tells whether it ran."""
    shutil.copytree(finished / "runs", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    (finished / "ran").unlink(missing_ok=True)
    forget()
    yield finished
    (finished / "score.py").write_text(REWARD.format(ran=str(finished / "ran")))


def forget():
    """Let the reward's file be loaded anew."""
    _resolved.cache_clear()
    for name in [one for one in sys.modules if one.startswith("llmgym_file_score")]:
        del sys.modules[name]


def tried(words, capsys):
    code = cli.main([*map(str, words)])
    return code, capsys.readouterr().err


def test_a_run_that_was_moved_is_not_begun_again_in_its_old_place(place, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "runs" / "a").rename(tmp_path / "elsewhere" / "a")
    code, said = tried(["train", "-c", "elsewhere/a/config.yaml", "--resume"], capsys)
    assert code == 2
    assert "elsewhere/a is not where its settings say" in said
    assert said.splitlines()[-1] == "--run.dir elsewhere --run.name a"
    way_on = ["--run.dir", "elsewhere", "--run.name", "a", "--trust"]
    words = ["train", "-c", moved / "config.yaml", "--resume", *way_on, "--quiet"]
    assert tried([*words, "--ppo.num-iterations", 2], capsys)[0] == 0
    assert (moved / "checkpoints" / "ppo_000002").is_dir()


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/ppo_000001"])
def test_a_finished_run_without_checkpoints_is_not_begun_again(lost, place, tmp_path, capsys):
    shutil.rmtree(tmp_path / "runs" / "a" / lost)
    before = (tmp_path / "runs/a/model/model.safetensors").read_bytes()
    words = ["train", "-c", "runs/a/config.yaml", "--resume", "--run.dir", "runs", "--trust"]
    code, said = tried(words, capsys)
    assert code == 2
    assert "runs/a has trained (ppo 1/1, finished), and no checkpoint of it is left" in said
    assert "--run.name a-2 --model.path runs/a/model --sft.num-epochs 0" in said
    assert (tmp_path / "runs/a/model/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("verb", ["eval", "play"])
def test_code_of_a_run_of_others_runs_only_once_it_is_trusted(
    verb, place, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(EOFError))
    words = [verb, "runs/a", *(["--n", "2"] if verb == "eval" else [])]
    code, said = tried(words, capsys)
    assert code == 2
    assert f"rewards.0.function: {place}/score.py:score, {place}/score.py, sha256 " in said
    assert said.splitlines()[-1] == f"llmgym {' '.join(words)} --trust"
    assert not (place / "ran").exists()
    code, said = tried([*words, "--trust"], capsys)
    assert (code, (place / "ran").exists()) == (0, True)
    assert f"trusted  rewards.0.function: {place}/score.py:score" in said
    assert tried(words, capsys)[0] == 0
    with (place / "score.py").open("a") as file:
        file.write("# another digest\n")
    (place / "ran").unlink()
    forget()
    assert tried(words, capsys)[0] == 2
    assert not (place / "ran").exists()


@pytest.mark.parametrize("verb", [["plan"], ["train", "--name", "b"], ["train", "--resume"]])
def test_a_start_from_the_settings_of_others_asks_as_well(verb, place, tmp_path, capsys):
    words = [*verb, "-c", "runs/a/config.yaml", "--run.dir", "runs"]
    code, said = tried(words, capsys)
    assert (code, (place / "ran").exists()) == (2, False)
    assert said.splitlines()[-1] == f"llmgym {' '.join(words)} --trust"


def test_a_run_that_was_started_here_asks_nothing(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished)
    forget()
    assert tried(["eval", "runs/a", "--n", "2"], capsys)[0] == 0
    assert tried(["train", "-c", "runs/a/config.yaml", "--resume", "--quiet"], capsys)[0] == 0


def test_settings_of_ones_own_and_words_that_were_typed_ask_nothing(
    place, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("trainers.cli.plan.show_plan", lambda *_: 0)
    config = read([tmp_path / "runs/a/config.yaml"])
    function = config.rewards[0].function
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"rewards:\n- function: {function}\n  isolated: false\n")
    assert tried(["plan", "-c", "mine.yaml", "--quiet"], capsys)[0] == 0
    words = ["plan", "-c", "runs/a/config.yaml", "--reward", function, "--quiet"]
    assert tried(words, capsys)[0] == 0


def test_other_ranks_leave_the_question_to_the_first(place, monkeypatch, capsys):
    monkeypatch.setattr("trainers.cli.plan.show_plan", lambda *_: 0)
    words = ["plan", "-c", "runs/a/config.yaml", "--quiet"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, said = tried(words, capsys)
    assert (code, said.splitlines()[-1]) == (2, "the same command with --trust")
    monkeypatch.setenv("RANK", "1")
    assert "names code that would run" not in tried(words, capsys)[1]


def test_eval_says_which_run_it_took_where_none_was_named(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished)
    assert os.path.isdir("runs/a")
    code, said = tried(["eval", "--n", "2"], capsys)
    assert (code, said.splitlines()[0]) == (0, "the newest run: runs/a")
