"""What a look at the disk tells is said before torch is imported, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from trainers.cli import early, train
from trainers.cli import main as cli
from trainers.cli.arguments import read_arguments
from trainers.config.files import dump, preset, read
from trainers.errors import ConfigError

CODE = """
import sys
from trainers.cli import main as cli
code = cli.main(sys.argv[1:])
heavy = {"torch", "transformers"} & sys.modules.keys()
assert not heavy, heavy
sys.exit(code)
"""
PROMPTS = ["train", "prompts", "--envs.0.kwargs.path"]


def said(*argv):
    """Run a command that must fail before torch is there; give what it says."""
    command = [sys.executable, "-c", CODE, *argv]
    found = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    return done.stderr


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    """Work in a folder with a file of rows, a reward, and a run that has learned something."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(20)]
    Path("my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("r.py").write_text("def score(response): return 1.0\n")
    Path("runs/quickstart/model").mkdir(parents=True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "-c", "nope.yaml"], "there is no file nope.yaml"),
        (["train", "quickstart"], "runs/quickstart exists (no status). --resume continues"),
        (["train", "--envs.0.id", "my/Say-v0"], "my/Say-v0"),
        (["plan", "--envs.0.id", "my/Say-v0"], "my/Say-v0"),
        (["sft", "--data", "mi.jsonl"], "no file mi.jsonl, looked for from"),
        (["reward-model", "--data", "mi.jsonl"], "Did you mean my.jsonl?"),
        ([*PROMPTS, "mi.jsonl", "--reward", "r.py:score"], "no file mi.jsonl, looked for from"),
        ([*PROMPTS, "my.jsonl", "--reward", "s.py:score"], "There is no file"),
        ([*PROMPTS, "my.jsonl", "--reward", "r.py:scor"], "did you mean score"),
        ([*PROMPTS, "my.jsonl", "--rewards.0.name", "exat"], "Did you mean exact?"),
        ([*PROMPTS, "my.jsonl"], "nothing says what a response to the prompts of my.jsonl"),
        (["report", "nope"], "there is no run folder nope. What is there:\nllmgym runs list"),
        (["play", "runs/nope"], "nor a model folder. What is there:\nllmgym runs list"),
        (["eval", "runs/nope"], "nor a model folder. What is there:\nllmgym runs list"),
        (["export", "runs/nope", "--out", "x"], "neither a run folder nor a model folder"),
    ],
)
def test_what_the_disk_tells_is_said_before_torch_is_imported(argv, words):
    assert words in said(*argv)
    assert [one.name for one in Path("runs").iterdir()] == ["quickstart"]


def test_a_start_that_may_come_to_something_is_not_refused():
    names = {"envs.0.id": "llmgym/Prompts-v0", "envs.0.kwargs.path": "my.jsonl"}
    config = read([], {**names, "rewards.0.function": "r.py:score", "run.name": "quickstart"})
    early.check_start(config, is_new=False)


def test_a_run_that_is_locked_is_left_to_the_one_who_takes_it():
    Path("runs/quickstart/run.lock").write_text("{}")
    early.check_start(read([], {"run.name": "quickstart"}), is_new=True)


def test_ranks_leave_it_to_the_run_where_one_of_them_speaks_for_all(monkeypatch):
    config = read([], {"run.name": "quickstart"})
    with pytest.raises(ConfigError, match="runs/quickstart exists"):
        early.check_start(config, is_new=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    early.check_start(config, is_new=True)


def test_a_plan_for_another_machine_needs_no_file_of_it(capsys):
    assert cli.main([*["plan", *PROMPTS[1:]], "elsewhere.jsonl", "--quiet"]) == 0
    assert "responses = 64 episodes" in capsys.readouterr().out


def test_a_resume_says_what_differs_from_the_run_itself(capsys):
    own = read([preset("quickstart")], {"ppo.num_prompts": 8})
    Path("runs/quickstart/config.yaml").write_text(dump(own))
    launch = read_arguments(["quickstart", "--ppo.num-iterations", "9", "--resume"])
    train._announce(train.config_of(launch), launch)
    assert capsys.readouterr().out.splitlines() == [
        "changed  ppo.num_iterations 120 -> 9",
        "changed  ppo.num_prompts 8 -> 512",
    ]
    launch = read_arguments(["-c", "runs/quickstart/config.yaml", "--resume"])
    train._announce(train.config_of(launch), launch)
    assert capsys.readouterr().out == ""
