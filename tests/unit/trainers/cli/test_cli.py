"""The command: its verbs, its exit codes, and what it says without a traceback."""

import dataclasses
import json
import logging
import subprocess
import sys
import warnings

import pytest

from trainers.cli import (
    bench,
    compress,
    data,
    doctor,
    envs,
    eval,
    export,
    play,
    report,
    rewards,
    runs,
    schema,
    serve,
)
from trainers.cli import main as cli
from trainers.cli.eval import evaluation_lines as told
from trainers.config.compression import CompressionSettings
from trainers.errors import CheckpointError
from trainers.evaluation.statistics import summarize


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Put back what the command sets for its process."""
    monkeypatch.delenv("RANK", raising=False)
    loggers = [logging.getLogger(name) for name in ("llmgym", "trainers")]
    before = [(one, one.propagate, list(one.handlers)) for one in loggers]
    with warnings.catch_warnings():
        yield
    for one, propagate, handlers in before:
        one.propagate, one.handlers[:] = propagate, handlers


def options(kind):
    return [field.name for field in dataclasses.fields(kind)]


def test_the_verbs_are_these():
    assert list(cli.VERBS) == [
        "train",
        "sft",
        "reward-model",
        "plan",
        "eval",
        "play",
        "envs",
        "rewards",
        "data",
        "compress",
        "export",
        "bench",
        "serve",
        "report",
        "runs",
        "launch",
        "schema",
        "doctor",
    ]


def test_the_options_of_each_verb_are_these():
    assert options(eval.Options) == [
        "target", "env", "against", "n", "temperature", "top_p", "top_k", "json", "trust",
        "plugins", "endpoint", "model", "kwargs", "max_tokens", "workers",
    ]  # fmt: skip
    assert options(play.Options) == ["target", "env", "base", "trust", "plugins"]
    assert options(export.Options) == ["target", "out", "to", "gguf_type", "best"]
    assert options(bench.Options) == [
        "models", "prompt_tokens", "new_tokens", "rounds", "warmups", "threads", "concurrency",
        "dtype", "forward", "max_load", "seed", "endpoint", "clients", "rates", "requests",
        "prompt_words", "wait_seconds", "timeout", "json",
    ]  # fmt: skip
    assert options(serve.Options) == [
        "target", "engine", "host", "port", "name", "dtype", "context", "rows", "adapters",
        "drafter", "draft_tokens", "threads", "cache_gb", "engine_args", "wait_seconds",
    ]  # fmt: skip
    assert options(schema.Options) == ["field"]
    assert options(doctor.Options) == ["json"]
    assert options(rewards.Options) == [
        "action", "reward", "data", "prompt_column", "answer_column", "solution_column",
        "last_assistant", "columns", "format", "n", "kwargs", "isolated", "timeout_seconds",
        "dialect", "json", "plugins",
    ]  # fmt: skip
    assert options(data.Options) == [
        "action", "file", "out", "to", "format", "prompt_column", "answer_column",
        "last_assistant", "columns", "model", "template", "json",
    ]  # fmt: skip
    assert options(compress.Options) == [
        "target", "settings", "env", "clean", "quiet", "trust", "plugins",
    ]  # fmt: skip
    assert options(CompressionSettings) == [
        "budget", "recover", "recover_iterations", "recover_minutes", "rerank", "rerank_steps",
        "int8", "search", "evaluations", "finalists", "name", "dir", "data", "report_data",
        "calibration_tokens", "selection_tokens", "report_tokens", "row_tokens", "phase", "batch",
        "prompt_tokens", "threads", "rounds", "score_tasks", "seed",
    ]  # fmt: skip
    assert options(report.Options) == ["runs", "out"]
    assert options(runs.ListRuns) == ["folder", "sort", "json"]
    assert options(runs.Diff) == ["a", "b", "json"]
    assert options(envs.ListEnvs) == ["filter", "plugins"]
    assert options(envs.Show) == ["id", "seed", "kwargs", "plugins"]
    assert options(envs.New) == ["name", "dir", "turns"]
    assert options(envs.AuditEnvs) == [
        "id", "libraries", "episodes", "kwargs", "json", "page", "plugins"
    ]  # fmt: skip
    assert options(envs.Check) == ["id", "episodes", "kwargs", "plugins"]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(argv, capsys):
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"  {verb} " in printed


@pytest.mark.parametrize(
    "verb",
    [
        "eval",
        "play",
        "envs",
        "rewards",
        "data",
        "export",
        "bench",
        "serve",
        "report",
        "runs",
        "schema",
        "doctor",
        "train",
    ],
)
def test_each_verb_explains_itself(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    assert f"llmgym {verb}" in capsys.readouterr().out


def test_an_unknown_verb_is_wrong_usage(capsys):
    assert cli.main(["trian"]) == 2
    said = capsys.readouterr().err
    assert said.startswith('ConfigError: no verb "trian". Did you mean train?')


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--ppo.gama", "1"], "ConfigError: ppo.gama is not a setting."),
        (["schema", "--field", "ppo.gama"], "ConfigError: ppo.gama is not a setting."),
        (["envs", "show", "llmgym/Arithmetc-v0"], "llmgym/Arithmetic-v0"),
        (["envs", "list", "--plugins", "no_such_module"], "PluginError"),
        (["envs", "show", "llmgym/Arithmetic-v0", "--kwargs", "x"], "takes NAME=VALUE"),
        (["eval", "./nope"], "is neither a run folder nor a model folder"),
        (["eval", "x", "--nn", "3"], "--nn"),
    ],
)
def test_wrong_usage_exits_with_2_and_no_traceback(argv, words, capsys):
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_code_that_ends_the_process_as_it_loads_is_wrong_usage(tmp_path, monkeypatch, capsys):
    (tmp_path / "ends_as_it_loads.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for argv in (["envs", "list", "--plugins", "ends_as_it_loads"],
                 ["rewards", "check", "ends_as_it_loads.py:score"]):  # fmt: skip
        assert cli.main(argv) == 2
        assert "SystemExit: 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\x1b[2J.py", "a\r\x07.py", "a\u202eyp.b.py", "a\x9b.py"])
def test_an_error_spells_the_control_characters_of_what_it_names(name, capsys):
    assert cli.main(["rewards", "check", f"{name}:score"]) == 2
    said = capsys.readouterr().err
    assert name.encode("unicode_escape").decode() in said
    assert not [one for one in said if not one.isprintable() and one != "\n"]


def test_debug_raises(capsys):
    with pytest.raises(ValueError, match="not a setting"):
        cli.main(["train", "--ppo.gama", "1", "--debug"])


def test_a_failure_exits_with_1(monkeypatch, capsys):
    def fail(argv):
        raise CheckpointError("runs/a cannot be written.")

    monkeypatch.setattr(schema, "main", fail)
    assert cli.main(["schema"]) == 1
    assert capsys.readouterr().err == "CheckpointError: runs/a cannot be written.\n"


def test_a_missing_library_names_the_extra(monkeypatch, capsys):
    def fail(argv):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(schema, "main", fail)
    assert cli.main(["schema"]) == 1
    assert capsys.readouterr().err == (
        'schema needs torch, which is not installed.\npip install "llmgym-rl[train]"\n'
    )


def test_a_wrong_setting_is_said_by_rank_0_alone(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train", "--ppo.gama", "1"]) == 2
    assert capsys.readouterr().err == ""


def test_a_warning_reaches_stderr_once(capsys):
    cli.main(["schema", "--field", "ppo.gamma"])
    cli.main(["schema", "--field", "ppo.gamma"])
    logging.getLogger("trainers.x").warning("look")
    assert capsys.readouterr().err == "warning: look\n"


def test_schema_is_a_json_schema_of_every_section(capsys):
    assert cli.main(["schema"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert {"run", "ppo", "log"} <= tree["properties"].keys()
    assert tree["additionalProperties"] is False


def test_schema_explains_one_setting(capsys):
    assert cli.main(["schema", "--field", "ppo.clip-low"]) == 0
    assert capsys.readouterr().out == (
        "ppo.clip_low\n  The ratio is clipped below at 1 - clip_low.\n  type     a number\n"
        "  range    above 0 and below 1\n  default  0.2\n"
    )


def test_schema_lists_a_section(capsys):
    assert cli.main(["schema", "--field", "log"]) == 0
    printed = capsys.readouterr().out
    assert "log.every = 1" in printed
    assert "log.wandb\n" in printed


def test_envs_list_show_and_check(capsys):
    assert cli.main(["envs", "list", "reversetokens"]) == 0
    assert capsys.readouterr().out == "llmgym/ReverseTokens-v0  probe, procedural\n"
    assert cli.main(["envs", "show", "llmgym/Arithmetic-v0"]) == 0
    printed = capsys.readouterr().out
    assert "reward       0 to 1" in printed
    assert "earns 1" in printed
    assert cli.main(["envs", "check", "llmgym/ReverseTokens-v0", "--episodes", "2"]) == 0
    assert capsys.readouterr().out.endswith("ok\n")


def test_a_report_pairs_the_same_tasks():
    def row(prompt, reward):
        return {"prompt": prompt, "completion": str(reward), "reward": reward}

    ours = summarize("a/B-v0", [1.0, 1.0], rows=[row("p", 1.0), row("q", 1.0)])
    theirs = summarize("a/B-v0", [0.0, 1.0], rows=[row("p", 0.0), row("q", 1.0)])
    lines = told([("runs/a/model", ours), ("base", theirs)], "greedy")
    assert lines[0] == "Held-out a/B-v0: 2 tasks, greedy, 95 % interval"
    assert lines[1] == "  runs/a/model  1 (all equal)"
    assert lines[3].startswith("  paired difference +0.5 [")
    assert lines[4:7] == [
        "  prompt   p", "  before   0.0  reward 0", "  after    1.0  reward 1",
    ]  # fmt: skip


def test_the_script_of_launchers_is_the_same_command():
    command = [sys.executable, "scripts/train_ppo.py", "--ppo.gama", "1", "--local_rank=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ppo.gama is not a setting" in done.stderr


def test_a_reader_that_has_enough_is_no_error():
    script = f"{sys.executable} -m trainers.cli schema | head -c 10"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (len(shown.stdout), shown.stderr) == (10, "")
