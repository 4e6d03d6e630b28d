"""Secrets given by name and known by value: in no file of a run, in nothing that it prints."""

from pathlib import Path
from unittest import mock

import pytest

from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.faults.conftest import write_rows
from trainers.checkpoint.identity import check_settings
from trainers.collect.rollout import TextCollector
from trainers.config.files import read
from trainers.errors import LostRankError
from trainers.loggers.jsonl import JsonlLogger
from trainers.redaction.redact import remember_secrets
from trainers.run_dir.record import read_status
from trainers.runner.run import run

# What no escape changes; around it stands what JSON, YAML, shells, URLs and pages write otherwise.
CORES = ("c0reN4med", "c0reValu3d", "c0rePassw0rd")
NAMED = f"n k'\"/+&<%\u00e9\\{CORES[0]}"
VALUED = f"v=;\"'/+&>~\u00fc {CORES[1]}"
URL = f"https://someone:{CORES[2]}@example.org/v1?api_key={CORES[2]}x"
REWARD = f"""
import json, urllib.parse

def score(prompt, response, *, api_key, base_url):
    assert api_key == {NAMED!r}, "the reward got another key"
    if prompt.startswith("Name 3"):
        forms = [api_key, urllib.parse.quote(api_key), urllib.parse.quote_plus(api_key)]
        raise ValueError(f"401 {{base_url}}: {{forms}} {{json.dumps(forms)}} {{prompt!r}}")
    return {{"good": sum(map(ord, response)) % 7 / 7, f"of {{api_key}}": 0.5}}
"""
KEY = "LLMGYM_SECRET_REWARDS_0_KWARGS_API_KEY"
PLACE = "LLMGYM_SECRET_REWARDS_0_KWARGS_BASE_URL"
SETTINGS = {
    "--reward": "my_reward.py:score",
    "--rewards.0.kwargs.api_key": NAMED,
    "--rewards.0.kwargs.base_url": URL,
    "--envs.0.kwargs.answer_column": "word",
    "--log.wandb.enabled": "true",
    "--log.samples-every": 1,
    "--eval.num-tasks": 4,
    "--sft.num-epochs": 1,
    "--data.path": "prompts.jsonl",
    "--data.response-column": "word",
    "--checkpoint.every": 1,
    "--ppo.max-error-rate": 0.9,
    "--ppo.num-prompts": 8,
}


@pytest.fixture(autouse=True)
def _planted(monkeypatch, place):
    monkeypatch.setenv("SERVICE_API_KEY", VALUED)
    for name, value in {"MODE": "offline", "DATA_DIR": "data", "CONFIG_DIR": "settings"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value if name == "MODE" else str(place / value))
    rows = [{"prompt": f"Name {n} {VALUED} {NAMED}", "word": f"{n}"} for n in range(24)]
    write_rows("prompts.jsonl", rows)
    Path("my_reward.py").write_text(REWARD, encoding="utf-8")


def files(run):
    return [path for path in run.rglob("*") if path.is_file()]


def leaks(run):
    """(file, secret) wherever one is found."""
    return [
        (str(path), core)
        for path in files(run)
        for core in CORES
        if core.encode() in path.read_bytes()
    ]


def open_to_others(run):
    """Files that another user can read; W&B links to a log outside of the run."""
    own = [path for path in (run, *files(run)) if not path.is_symlink()]
    return [path for path in own if path.stat().st_mode & 0o077]


def is_clean(answer):
    """No file of the run and nothing printed holds a secret, and nobody else can read the files."""
    run = Path("runs/a")
    assert leaks(run) == []
    assert not [core for core in CORES if core in answer.said + answer.shown]
    assert not open_to_others(run)
    return True


def continued(typed, *words):
    """Continue the run by the command that it prints."""
    changes = {"--ppo.num-iterations": 2, "--log.wandb.enabled": "true"}
    verb = ("train", "-c", "runs/a/config.yaml", "--resume")
    return typed(changes, *words, verb=verb)


def test_secrets_are_in_no_file_and_a_resume_takes_them_from_the_environment(typed, monkeypatch):
    answer = typed(SETTINGS)
    run = Path("runs/a")
    assert answer.code == 0, answer.said
    assert is_clean(answer)
    assert {"metrics.jsonl", "samples.jsonl", "report.html"} <= {one.name for one in files(run)}
    assert f"Before   export {KEY}=VALUE" in answer.shown

    before = {path: path.read_bytes() for path in files(run)}
    monkeypatch.setenv(PLACE, URL)
    answer = continued(typed)
    assert answer.code == 2
    assert "rewards.0.kwargs.api_key: the value is (hidden)" in answer.said
    assert answer.said.endswith(f"\nexport {KEY}=VALUE\n"), "the one that is not set, alone"
    assert before == {path: path.read_bytes() for path in files(run)}
    answer = typed({"--n": 2}, verb=("eval", "runs/a"))
    assert (answer.code, f"export {KEY}=VALUE" in answer.said) == (2, True)

    monkeypatch.setenv(KEY, NAMED)
    answer = continued(typed)
    assert answer.code == 0, answer.said
    assert read_status(run)["iteration"] == 2
    assert is_clean(answer)
    parts = sorted(map(str, run.glob("wandb/offline-run-*")))
    assert len(parts) == 2
    assert f"wandb sync {' '.join(parts)}\n" in answer.shown
    assert {"(hidden)"} == {one.kwargs["api_key"] for one in read([run / "config.yaml"]).rewards}


def test_a_run_that_fails_with_a_secret_in_its_error_keeps_it(typed):
    reward = "def score(prompt, response, *, api_key, base_url):\n    raise ValueError(api_key)\n"
    Path("refused.py").write_text(reward, encoding="utf-8")
    changes = {"--reward": "refused.py:score", "--sft.num-epochs": 0, "--eval.num-tasks": 0}
    answer = typed(SETTINGS | changes | {"--ppo.max-error-rate": 0.2})
    assert answer.code == 1
    assert "First: ValueError: (hidden)" in answer.said
    assert "First: ValueError: (hidden)" in read_status(Path("runs/a"))["reason"]
    assert is_clean(answer)


def test_another_key_is_no_other_run():
    """A key that was renewed continues the run; the settings have one digest with any key."""
    config = read([], {"rewards": [{"function": "a.py:b", "kwargs": {"api_key": "first-key-1"}}]})
    other = read([], {"rewards": [{"function": "a.py:b", "kwargs": {"api_key": "second-key-2"}}]})
    assert config != other
    assert config.digest == other.digest
    check_settings(config, other, Path("a"))


def failing(folder, secret):
    """The message of this rank, where rank 1 fails with a secret in its error."""

    def collect(self, actor, iteration):
        if self._world.rank:
            raise KeyError(f"no answer for {secret}")
        return working(self, actor, iteration)

    working = TextCollector.collect
    remember_secrets({"api_key": secret})
    config = read([], {**tiny.RUN, "run.dir": folder, "model.context": 64})
    with mock.patch.object(TextCollector, "collect", collect):
        try:
            run(config, loggers=[JsonlLogger()])
        except LostRankError as error:
            return str(error)
    return "nothing"


def test_a_rank_that_fails_with_a_secret_tells_it_to_no_other(tmp_path):
    runs = tmp_path / "runs"
    told = run_ranks(failing, str(runs), NAMED, timeout=120)
    assert "rank 1" in told[0]
    assert "no answer for (hidden)" in told[0]
    assert {"rank_0.log", "rank_1.log", "rank_1.exit_report"} <= {x.name for x in files(runs)}
    assert leaks(runs) == []
    assert not open_to_others(runs / "a")
