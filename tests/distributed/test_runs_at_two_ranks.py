"""Whole runs of text at two ranks: they act as one process does, resume exactly, and are launched.

Each launch is two new processes; the tests read what the runs left behind.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.distributed.ranks import free_port, run_ranks
from tests.resume.trainee import differences, left_behind
from trainers.checkpoint.loading import find, load
from trainers.collect.rollout import TextCollector
from trainers.loggers.jsonl import JsonlLogger
from trainers.run_dir.record import lines, read_status
from trainers.runner.run import run

ROOT = Path(__file__).parents[2]
ITERATIONS = 2
CHANGES = {
    "ppo.kl_controller": "adaptive",
    "ppo.kl_horizon": 20.0,
    "ppo.kl_target": 0.01,
    "ppo.reward_normalize": "running",
    "eval.num_tasks": 4,
    "eval.every": 1,
    "checkpoint.every": 1,
}
TYPED = {
    "--name": "a",
    "--data.num-examples": 32,
    "--sft.num-epochs": 1,
    "--sft.batch-size": 16,
    "--ppo.num-iterations": 1,
    "--ppo.num-prompts": 4,
    "--ppo.samples-per-prompt": 2,
    "--ppo.num-minibatches": 2,
    "--eval.num-tasks": 4,
    "--generation.max-new-tokens": 4,
    "--log.wandb.enabled": "false",
}


def trained(model, folder, iterations, resume=False, more=None):
    """Run on this rank; the figures of the end, and each rollout by row: ids and reward."""
    rollouts = []

    def collected(self, actor, iteration):
        made = collect(self, actor, iteration)
        rows = zip(made.inputs.actions, made.response_mask, strict=True)
        ids = [row[mask].tolist() for row, mask in rows]
        rewards = made.rewards.sum(1).tolist()
        rollouts.append(list(zip(made.index.tolist(), ids, rewards, strict=True)))
        return made

    collect = TextCollector.collect
    changes = {**CHANGES, "ppo.num_iterations": iterations, **(more or {})}
    config = tiny.run_settings(model, folder, **changes)
    with mock.patch.object(TextCollector, "collect", collected):
        done = run(config, reward=tiny.letters, resume=resume, loggers=[JsonlLogger()])
    return done.metrics, rollouts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """Folder, figures and rollouts of a run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, *trained(model, folder, ITERATIONS)


@pytest.fixture(scope="module")
def together(model, tmp_path_factory):
    """Folder of a run at two ranks, and what it gave on each."""
    folder = tmp_path_factory.mktemp("together")
    return folder, run_ranks(trained, model, str(folder), ITERATIONS)


def test_two_ranks_sample_the_rows_of_one_in_their_order(alone, together):
    _, _, (expected, *_) = alone
    _, ranks = together
    rows = [row for _, rollouts in ranks for row in rollouts[0]]
    assert [len(rollouts[0]) for _, rollouts in ranks] == [4, 4]
    assert [(index, ids) for index, ids, _ in rows] == [(index, ids) for index, ids, _ in expected]
    assert [index for index, *_ in rows] == list(range(8))
    assert len({tuple(ids) for _, ids, _ in rows}) > 4, "they differ, so their order can be seen"
    got, wanted = (torch.tensor([reward for *_, reward in part]) for part in (rows, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def timeless(figures):
    """Figures without those that a clock gives."""
    times = ("timing_s/", "perf/")
    return {key: value for key, value in figures.items() if not key.startswith(times)}


def logged(folder):
    """The figures of each iteration and evaluation."""
    return [timeless(line) for line in lines(Path(folder) / "a" / "metrics.jsonl")]


def test_the_metrics_of_two_ranks_are_those_of_one_and_equal_on_both(alone, together):
    folder, ((one, _), (other, _)) = together
    assert timeless(one) == timeless(other)
    expected, found = logged(alone[0]), logged(folder)
    assert len(found) == len(expected) == 2 * ITERATIONS + 1
    for wanted, got in zip(expected, found, strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_weights_of_two_ranks_are_those_of_one(alone, together, model):
    began = load_file(Path(model) / "model.safetensors")
    for part in ("model", "critic"):
        wanted, got = (
            load_file(Path(folder) / "a" / part / "model.safetensors")
            for folder in (alone[0], together[0])
        )
        assert tiny.difference(wanted, got) < 1e-5
        if part == "model":
            assert tiny.difference(began, got) > 1e-3


def kept(folder):
    """What must not depend on interruptions: of both ranks."""
    newest = find(Path(folder) / "a" / "checkpoints", "ppo").path
    own = dict(load(newest, 1).own)
    session = {key: value for key, value in own["session"].items() if key != "loggers"}
    return {"first": left_behind(folder), "second": {**own, "session": session}}


def test_at_two_ranks_n_and_n_in_new_processes_are_2n(together, model, tmp_path):
    shutil.copytree(together[0], tmp_path, symlinks=True, dirs_exist_ok=True)
    newest = find(tmp_path / "a" / "checkpoints", "ppo")
    assert newest.number == ITERATIONS
    shutil.rmtree(newest.path)  # as a run that was stopped after the first half left it
    run_ranks(trained, model, str(tmp_path), ITERATIONS, True)
    attempts = [line["attempt"] for line in lines(tmp_path / "a" / "metrics.jsonl")]
    assert attempts == [1] * 5 + [2] * 2, "the second half was run again, and nothing else"
    assert differences(kept(tmp_path), kept(together[0])) == []


def test_the_script_of_launchers_trains_at_two_ranks(tmp_path):
    words = [str(word) for pair in TYPED.items() for word in pair]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    script = [str(ROOT / "scripts" / "train_ppo.py"), "quickstart", *words]
    done = subprocess.run(
        [sys.executable, *launcher, *address, *script],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "runs" / "a"
    assert read_status(folder)["status"] == "finished"
    assert (folder / "model" / "model.safetensors").is_file()
    assert done.stdout.count("llmgym  a -> runs/a") == 1, "rank 0 alone prints"
    logs = {file.name for file in (folder / "logs" / "latest").iterdir()}
    assert logs == {"rank_0.log", "rank_1.log"}
