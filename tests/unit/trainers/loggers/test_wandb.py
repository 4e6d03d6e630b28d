"""W&B as it is written: read back with its own command."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import wandb

from trainers.config import RewardConfig
from trainers.errors import ConfigError
from trainers.loggers import wandb as door
from trainers.loggers.base import RunInfo
from trainers.loggers.credentials import has_credentials
from trainers.loggers.wandb import MAX_TABLE_ROWS, WandbLogger, _cell, mode, offline_parts

CANARY = "canary0123456789canary0123456789canary01"
ALWAYS = {
    "objective/scores": 0.4, "objective/entropy": 3.0, "policy/approxkl_avg": 0.001,
    "policy/ratio_max": 1.2, "value/explained_var": 0.3, "loss/total": 0.1, "perf/cpu_gb": 1.0,
    "rewards/exact/mean": 0.4, "env/llmgym/Arithmetic-v0/reward": 0.4, "timing_s/total": 1.5,
    "advantages/std": 1.0, "train/episodes": 256.0,
}  # fmt: skip
ROW = {
    "env": "llmgym/Arithmetic-v0", "prompt": "2 + 2 =", "completion": "4", "reward": 1.0,
    "exact": 1.0, "kl": 0.1, "length": 2, "finish_reason": "stop", "advantage": 0.5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_MODE", "offline")


def records(folder):
    """Read an offline run with wandb's own reader."""
    command = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--json",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(folder):
    return [one["history"]["item"] for one in records(folder) if one["type"] == "history"]


def folders(run_dir):
    return sorted((run_dir / "wandb").glob("offline-run-*"), key=lambda one: one.stat().st_mtime_ns)


def test_an_offline_run_holds_every_key_that_was_logged(config, tmp_path, evaluation, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setattr(sys, "argv", ["llmgym", "train", f"--api-key={CANARY}"])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    logger = WandbLogger()
    logger.start(RunInfo(config, run_dir))
    logger.log({"sft/loss": 2.5, "sft/lr": 1e-3}, 7, "sft")
    for step in (1, 2):
        logger.log(ALWAYS, step)
        logger.samples([ROW] * (MAX_TABLE_ROWS + 4), step)
    logger.evaluation([evaluation(0.5)], 2, {})
    state = logger.state_dict()
    logger.close("finished")

    (folder,) = folders(run_dir)
    items = history(folder)
    assert [item["_step"] for item in items] == list(range(1, 7))
    assert items[0]["sft/step"] == 7
    assert all("train/global_step" in item for item in items[1:])
    for key, value in ALWAYS.items():
        assert [item[key] for item in items if key in item] == [value, value]
    assert items[-1]["eval/score"] == 0.5
    assert [item["samples._type"] for item in items if "samples._type" in item] == [
        "incremental-table-file"
    ] * 2
    assert state == {"id": folder.name.rpartition("-")[2], "step": 6}
    steps = {
        one["metric"].get("glob_name"): one["metric"].get("step_metric")
        for one in records(folder)
        if one["type"] == "metric"
    }
    assert steps["sft/*"] == "sft/step"
    assert steps["eval/*"] == steps["objective/*"] == "train/global_step"
    table = min(folder.rglob("*.table.json"))
    rows = json.loads(table.read_text("utf-8"))
    assert len(rows["data"]) == MAX_TABLE_ROWS
    shown = dict(zip(rows["columns"], rows["data"][0], strict=True))
    assert (shown["completion"], shown["parts"], shown["step"]) == ("4", '{"exact": 1.0}', 1)
    for file in run_dir.rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file
    assert not list(run_dir.rglob("wandb-metadata.json"))
    assert not [one for one in run_dir.rglob("code/*") if one.is_file()]


def test_a_resumed_run_continues_at_the_next_step(config, tmp_path):
    first = WandbLogger()
    first.start(RunInfo(config, tmp_path))
    for step in (1, 2, 3):
        first.log({"objective/kl": float(step)}, step)
        if step == 2:
            state = first.state_dict()
    first.close("failed")

    second = WandbLogger()
    second.start(RunInfo(config, tmp_path, state))
    second.log({"objective/kl": 30.0}, 3)
    assert second.state_dict() == {"id": state["id"], "step": 3}
    second.close("finished")
    resumed = [
        one for one in folders(tmp_path) if history(one) and history(one)[0]["objective/kl"] == 30.0
    ]
    (item,) = history(resumed[0])
    assert (item["_step"], item["train/global_step"]) == (3, 3)


def test_what_is_not_finite_is_left_out_and_said_once(config, tmp_path, caplog):
    logger = WandbLogger()
    logger.start(RunInfo(config, tmp_path))
    with caplog.at_level(logging.WARNING):
        logger.log({"objective/kl": float("nan"), "objective/scores": 1.0}, 1)
        logger.log({"objective/kl": float("inf"), "objective/scores": 2.0}, 2)
    logger.close("finished")
    assert [
        set(item) & {"objective/kl", "objective/scores"} for item in history(folders(tmp_path)[0])
    ] == [{"objective/scores"}] * 2
    assert len([one for one in caplog.records if one.name == door.__name__]) == 1


def test_a_tracker_that_cannot_start_warns_once_and_the_run_goes_on(
    config, tmp_path, monkeypatch, caplog
):
    def fail(**_):
        raise wandb.errors.CommError("unreachable")

    monkeypatch.setattr(wandb, "init", fail)
    logger = WandbLogger()
    with caplog.at_level(logging.WARNING):
        logger.start(RunInfo(config, tmp_path))
        logger.log({"objective/kl": 1.0}, 1)
        logger.samples([ROW], 1)
        logger.close("finished")
    assert [one.getMessage() for one in caplog.records] == [
        "W&B: it did not start: CommError: unreachable. The run continues; metrics.jsonl has "
        "everything."
    ]


def test_online_without_credentials_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError) as caught:
        mode()
    assert str(caught.value) == (
        "WANDB_MODE=online, but no credentials.\nwandb login, or WANDB_MODE=offline"
    )


def test_without_credentials_a_run_is_offline_and_with_them_online(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    assert (has_credentials(), mode()) == (False, "offline")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {CANARY}\n")
    netrc.chmod(0o600)
    assert (has_credentials(), mode()) == (True, "online")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled"


def warned(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


def test_a_folder_that_is_removed_meanwhile_is_said_once_and_the_run_goes_on(
    config, tmp_path, caplog
):
    logger = WandbLogger()
    logger.start(RunInfo(config, tmp_path))
    logger.log({"objective/kl": float("nan")}, 1)
    shutil.rmtree(tmp_path / "wandb")
    for step in (2, 3):
        logger.log({"objective/kl": 1.0}, step)
        logger.samples([ROW], step)
    logger.close("finished")
    assert [one.partition(".")[0] for one in warned(caplog)] == [
        "W&B: left out what is not finite: ['objective/kl']",
        f"W&B: {tmp_path}/wandb was removed, so nothing more is written there",
    ]
    assert logger.state_dict()["step"] == 1, "what was lost counts as no step"


@pytest.mark.parametrize("error", [RuntimeError("x"), wandb.errors.UsageError("x"), KeyError("x")])
@pytest.mark.parametrize("place", ["log", "finish", "define_metric"])
def test_whatever_the_library_raises_warns_once_and_ends_no_run(
    config, tmp_path, caplog, monkeypatch, error, place
):
    run = mock.Mock(id="a", dir=str(tmp_path))
    getattr(run, place).side_effect = error
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    (tmp_path / "wandb").mkdir()
    logger = WandbLogger()
    logger.start(RunInfo(config, tmp_path))
    for step in (1, 2):
        logger.log({"objective/kl": 1.0}, step)
        logger.samples([ROW], step)
    logger.close("finished")
    (text,) = warned(caplog)
    assert f"{type(error).__name__}: " in text
    assert text.endswith("The run continues; metrics.jsonl has everything.")


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("@SUM(A1)", "'@SUM(A1)"),
     ("-2+3", "'-2+3"), ("\t=1", "'\t=1"), ("\r\n=1", "'\r\n=1"), ("\uff1d1+1", "'\uff1d1+1"),
     ("-5", "-5"), ("+1,234.5", "+1,234.5"), ("-12%", "-12%"), ("2 = 2", "2 = 2"), ("", "")],
)  # fmt: skip
def test_no_cell_begins_like_a_formula_and_a_number_stays_one(text, cell):
    assert _cell(text) == cell


def test_the_settings_of_a_run_go_up_without_secrets(config, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(wandb, "init", lambda **words: given.update(words) or mock.Mock(id="a"))
    rewards = [RewardConfig(function="a.py:b", kwargs={"api_key": CANARY})]
    WandbLogger().start(RunInfo(replace(config, rewards=rewards), tmp_path))
    assert given["config"]["rewards"][0]["kwargs"] == {"api_key": "(hidden)"}
    assert CANARY not in str(given)


def test_every_part_of_a_run_that_is_offline_is_named_in_order(tmp_path):
    names = ["offline-run-20260102_000000-b", "offline-run-20260101_235959-a", "run-20260103_1-c"]
    for name in names:
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to(names[0])
    assert [one.name for one in offline_parts(tmp_path)] == [names[1], names[0]]
