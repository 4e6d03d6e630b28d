"""runs and report: what is there, what differs, one page, and what is damaged."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trainers.cli import main as cli
from trainers.cli import runs
from trainers.config.files import dump, read

NOW = datetime(2030, 1, 2, 12, tzinfo=UTC)


def write(name, *, scores, updated="2030-01-02T11:00:00+00:00", **settings):
    config = read([], {"run.name": name, **settings})
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config), "utf-8")
    status = {"status": "finished", "stage": "ppo", "iteration": len(scores), "num_iterations": 9}
    (folder / "status.json").write_text(json.dumps({**status, "updated": updated}), "utf-8")
    figures = enumerate(scores, start=1)
    text = (json.dumps({"train/global_step": i, "objective/scores": one}) for i, one in figures)
    (folder / "metrics.jsonl").write_text("\n".join(text) + "\n", "utf-8")


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Runs a, b and c in runs/; c is damaged."""
    monkeypatch.chdir(tmp_path)
    write("a", scores=[0.1, 0.2])
    write("b", scores=[0.9], updated="2030-01-01T11:00:00+00:00", **{"ppo.gamma": 0.5})
    write("c", scores=[])
    Path("runs/c/metrics.jsonl").write_bytes(b"\xff\n")


def test_list_shows_a_line_a_run_and_why_one_is_damaged(three, capsys):
    assert cli.main(["runs", "list", "--sort", "reward"]) == 0
    head, b, a, c, why = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "name", "state", "kind", "env", "iteration", "reward", "score", "size", "when",
    ]  # fmt: skip
    assert b.split()[:6] == ["b", "finished", "ppo", "Arithmetic-v0", "1/9", "0.9"]
    assert a.split()[:6] == ["a", "finished", "ppo", "Arithmetic-v0", "2/9", "0.2"]
    assert c.split()[:2] == ["c", "damaged"]
    assert why.startswith("c: runs/c/metrics.jsonl is damaged: none of its 1 lines is a record.")


@pytest.mark.parametrize(
    ("sort", "order"), [("when", "abc"), ("name", "abc"), ("reward", "bac"), ("state", "cab")]
)
def test_a_list_is_sorted_and_json_is_complete(three, capsys, sort, order):
    assert cli.main(["runs", "list", "--json", "--sort", sort]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == [*order]
    assert {one["name"]: one.get("reward") for one in found} == {"a": 0.2, "b": 0.9, "c": None}


def test_a_list_of_nothing_says_how_to_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["runs", "list"]) == 2
    assert "no run in runs/. Start one: llmgym train quickstart" in capsys.readouterr().err


def test_diff_shows_settings_and_last_figures(three, capsys):
    assert cli.main(["runs", "diff", "runs/a", "runs/b"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ppo.gamma", "1.0", "0.5"] in lines
    assert ["objective/scores", "0.2", "0.9"] in lines
    assert not any(line[:1] == ["ppo.clip_low"] for line in lines)
    assert cli.main(["runs", "diff", "runs/a", "runs/b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["ppo.gamma"] == [1.0, 0.5]
    assert found["figures"] == {"objective/scores": [0.2, 0.9]}


def test_diff_of_a_run_and_itself_says_so(three, capsys):
    assert cli.main(["runs", "diff", "runs/a", "runs/a"]) == 0
    assert capsys.readouterr().out.startswith("The settings are the same.")


@pytest.mark.parametrize("argv", [["runs", "diff", "runs/a", "runs/c"], ["report", "runs/c"]])
def test_a_damaged_run_is_wrong_usage_with_the_next_command(three, capsys, argv):
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "ConfigError: runs/c/metrics.jsonl is damaged" in error
    assert error.endswith("mv runs/c/metrics.jsonl runs/c/metrics.damaged\n")


def test_report_prints_the_path_of_its_page(three, capsys):
    assert cli.main(["report", "runs/a", "runs/b"]) == 0
    assert capsys.readouterr().out == "runs/comparison.html\n"
    assert cli.main(["report", "runs/a", "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert "<h1>a</h1>" in Path("page.html").read_text("utf-8")


def test_report_takes_the_run_that_was_started_last(three, capsys):
    for age, name in enumerate("bac"):
        os.utime(f"runs/{name}/config.yaml", (1e9 - age, 1e9 - age))
    assert cli.main(["report"]) == 0
    assert capsys.readouterr().out == "runs/b/report.html\n"


@pytest.mark.parametrize(
    ("updated", "says"),
    [
        ("2030-01-02T11:59:30+00:00", "now"),
        ("2030-01-02T11:55:00+00:00", "5 min ago"),
        ("2030-01-02T09:00:00+00:00", "3 h ago"),
        ("2029-12-31T12:00:00+00:00", "2 d ago"),
        ("2030-01-02T11:00:00", "-"),
        ("soon", "-"),
        (None, "-"),
    ],
)
def test_an_age_is_what_a_person_says(updated, says):
    assert runs.age(updated, NOW) == says


@pytest.mark.parametrize(
    ("number", "says"), [(0, "0 B"), (1500, "2 kB"), (78_400_000, "78 MB"), (2.5e9, "2.5 GB")]
)
def test_a_size_is_what_a_person_says(number, says):
    assert runs.size(number) == says


def test_runs_are_listed_without_torch_or_matplotlib(three):
    code = (
        "import sys; from trainers.cli.main import main; main(['runs', 'list']);"
        "main(['runs', 'diff', 'runs/a', 'runs/b']);"
        "assert not {'torch', 'transformers', 'matplotlib', 'wandb'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("width", "lacks"), [(200, []), (100, ["size"]), (80, ["kind", "reward"])])
def test_a_narrow_terminal_leaves_columns_out_and_cuts_no_name(width, lacks):
    row = {"name": "emotions-of-strangers-1", "state": "interrupted", "kind": "reward_model",
           "env": "llmgym/GuessNumber-v0", "iteration": 100, "num_iterations": 150, "reward": 0.53,
           "score": 0.596, "ci_low": 0.553, "ci_high": 0.637, "bytes": 78e6,
           "updated": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    head, line = runs.table([row], datetime(2026, 1, 9, tzinfo=UTC), width)
    assert max(len(head), len(line)) <= width
    assert not set(lacks) & set(head.split())
    assert line.startswith("emotions-of-strangers-1 ")
    assert "0.596 [0.553, 0.637]" in line
