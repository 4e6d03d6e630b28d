"""Whole runs on DeepSpeed at two ranks: started by its launcher, and text written from shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from tests import tiny
from tests.distributed.ranks import free_port, run_ranks
from tests.distributed.test_runs_at_two_ranks import TYPED, logged, timeless, trained
from tests.resume.trainee import differences
from trainers.checkpoint.loading import find, load
from trainers.run_dir.record import read_status

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
ZERO = {
    "0": {"backend.zero.stage": 0},
    "1, optimizer": {"backend.zero.stage": 1, "backend.zero.offload": "optimizer"},
    "2": {"backend.zero.stage": 2},
    "3, a copy writes": {"backend.zero.stage": 3},
    "3, shards write": {"backend.zero.stage": 3, "backend.zero.gather_gb": 0.0},
    "3, offloaded shards write": {
        "backend.zero.stage": 3,
        "backend.zero.offload": "params",
        "backend.zero.gather_gb": 0.0,
    },
}
ENDS = {"generation.eos_token_ids": [*range(100)], "generation.max_new_tokens": 6}
"""Many tokens end a response, so that its length is left to chance."""
LORA = {"model.lora.rank": 3}
SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""Small tensors are shared out as well; else a tiny model would be whole everywhere."""


def settings(place, folder):
    """The changes that run on DeepSpeed."""
    changes = {"backend.name": "deepspeed", **ZERO[place]}
    if changes["backend.zero.stage"] == 3:
        file = folder / "user.json"
        file.write_text(json.dumps(SHARD_ALL), encoding="utf-8")
        changes["backend.zero.config"] = str(file)
    return changes


def assert_a_run_is_one_of_torch(model, folder, place, more):
    wanted_metrics, wanted = trained(model, folder / "alone", 2, False, ENDS | more)
    changes = {**settings(place, folder), **ENDS, **more}
    ranks = run_ranks(trained, model, str(folder / "zero"), 2, False, changes, timeout=500)
    rows = [row for _, rollouts in ranks for row in rollouts[0]]
    assert [(index, ids) for index, ids, _ in rows] == [(index, ids) for index, ids, _ in wanted[0]]
    assert len({len(ids) for _, ids, _ in rows}) > 1, "lengths differ, so ranks end apart"
    for got, expected in zip(logged(folder / "zero"), logged(folder / "alone"), strict=True):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert timeless(ranks[0][0]) == timeless(ranks[1][0])
    assert ranks[0][0]["objective/kl"] == pytest.approx(wanted_metrics["objective/kl"], abs=1e-5)
    for part in ("model", "critic"):
        one, other = (
            load_file(folder / kind / "a" / part / "model.safetensors")
            for kind in ("alone", "zero")
        )
        assert tiny.difference(one, other) < 1e-4


def test_ranks_that_write_from_shards_write_what_one_process_writes(tmp_path):
    model = str(tiny.save_model(tmp_path / "model"))
    reads = {"ppo.critic_reads_logprobs": True}
    assert_a_run_is_one_of_torch(model, tmp_path, "3, shards write", reads)


def test_adapters_at_stage_3_are_gathered_written_with_and_merged_as_in_one_process(tmp_path):
    model = str(tiny.save_model(tmp_path / "model"))
    assert_a_run_is_one_of_torch(model, tmp_path, "3, a copy writes", LORA)
    one, other = (
        load_file(tmp_path / kind / "a" / "model" / "adapter" / "adapter_model.safetensors")
        for kind in ("alone", "zero")
    )
    assert tiny.difference(one, other) < 1e-4
    given = json.loads((tmp_path / "zero" / "a" / "deepspeed.json").read_text(encoding="utf-8"))
    assert given.keys() == {"policy", "critic"}, "no second copy of the weights for a reference"


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, LORA], ids=["whole", "adapters"])
@pytest.mark.parametrize("place", ZERO)
def test_a_run_on_deepspeed_is_one_of_torch(tmp_path, place, more):
    model = str(tiny.save_model(tmp_path / "model"))
    assert_a_run_is_one_of_torch(model, tmp_path, place, more)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, LORA], ids=["whole", "adapters"])
@pytest.mark.parametrize("place", ["2", "3, a copy writes"])
def test_n_and_n_in_new_processes_are_2n(tmp_path, place, more):
    model = str(tiny.save_model(tmp_path / "model"))
    changes = settings(place, tmp_path) | more
    whole, halves = str(tmp_path / "whole"), str(tmp_path / "halves")
    run_ranks(trained, model, whole, 2, False, changes, timeout=500)
    run_ranks(trained, model, halves, 1, False, changes, timeout=500)
    run_ranks(trained, model, halves, 2, True, changes, timeout=500)
    one, other = (
        load(find(Path(folder) / "a" / "checkpoints", "ppo").path).parts
        for folder in (whole, halves)
    )
    assert differences(dict(one), dict(other)) == []


def test_one_process_without_a_launcher_trains_on_deepspeed(tmp_path):
    words = [str(word) for pair in TYPED.items() for word in pair]
    set_by_launchers = ("DS_ACCELERATOR", "RANK", "LOCAL_RANK", "WORLD_SIZE")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainers.cli",
            "train",
            "quickstart",
            "-c",
            "backends/zero2",
            *words,
        ],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in set_by_launchers}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert read_status(tmp_path / "runs" / "a")["status"] == "finished"


def test_the_launcher_of_deepspeed_trains_and_exports_whole_models(tmp_path):
    words = [str(word) for pair in TYPED.items() for word in pair]
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("deepspeed")),
            "--num_accelerators=2",
            f"--master_port={free_port()}",
            str(ROOT / "scripts" / "train_ppo.py"),
            "quickstart",
            "-c",
            str(ROOT / "configs" / "backends" / "zero3_offload.yaml"),
            *words,
        ],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "runs" / "a"
    assert read_status(folder)["status"] == "finished"
    given = json.loads((folder / "deepspeed.json").read_text(encoding="utf-8"))
    assert given.keys() == {"policy", "critic", "reference"}
    assert given["policy"]["zero_optimization"]["offload_param"]["device"] == "cpu"
    policy = AutoModelForCausalLM.from_pretrained(folder / "model")
    critic = AutoModel.from_pretrained(folder / "critic")
    head = load_file(folder / "critic" / "value_head.safetensors")
    assert head["weight"].shape == (1, critic.config.hidden_size + 4)
    for model in (policy, critic):
        assert all(weight.numel() and weight.isfinite().all() for weight in model.parameters())
    assert {file.name for file in (folder / "logs" / "latest").iterdir()} == {
        "rank_0.log",
        "rank_1.log",
    }
