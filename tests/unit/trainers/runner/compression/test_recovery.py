"""A compression with a recovery: what is sliced learns, and the rest of the run is as without."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.trainers.compress.tiny_models import database_of, rows_of
from tests.unit.trainers.runner.compression.tiny_runs import (
    dense_config,
    fast,
    save_dense,
    settings,
    write_text,
)
from trainers.compress.row_files import read_splits
from trainers.compress.short_recovery import model_kl, recover_briefly
from trainers.compress.slicing import slice_model
from trainers.compress.units import uniform_plan
from trainers.errors import ConfigError
from trainers.models.int8 import is_int8
from trainers.runner.compression.driver import compress

ENV = {
    "envs.0.id": "llmgym/Arithmetic-v0",
    "generation.max_prompt_tokens": 32,
    "generation.max_new_tokens": 4,
    "generation.batch_size": 16,
}


@pytest.fixture
def sliced():
    """A database, and a model of half of its widths."""
    database = database_of()
    plan = uniform_plan(database.variants.geometry, groups=2, channels=24)
    return database, plan, slice_model(database.model, plan, database.variants.variant)


def test_the_kl_of_a_sliced_model_is_that_of_its_plan(sliced):
    database, plan, smaller = sliced
    rows = rows_of(2)  # the report split
    assert model_kl(database.model, smaller, rows) == pytest.approx(
        database.report_kl(plan), rel=1e-4
    )


def test_a_short_recovery_lowers_the_kl_and_repeats_itself(sliced):
    database, plan, smaller = sliced
    again = slice_model(database.model, plan, database.variants.variant)
    rows = rows_of(0, 24)
    before = model_kl(database.model, smaller, rows)
    for model in (smaller, again):
        recover_briefly(database.model, model, rows, steps=20, seed=3)
    after = model_kl(database.model, smaller, rows)
    assert after < 0.9 * before
    assert model_kl(database.model, again, rows) == after
    assert not any(weight.requires_grad for weight in smaller.parameters())
    assert model_kl(database.model, database.model, rows) == pytest.approx(0, abs=1e-6)


def test_a_recovered_run_has_both_models_and_scores(tmp_path, monkeypatch):
    fast(monkeypatch)
    save_dense(tmp_path / "dense")
    write_text(tmp_path / "text.txt")
    changes = {
        "recover": "ppo",
        "recover_iterations": 2,
        "recover_minutes": None,
        "rerank": 2,
        "rerank_steps": 2,
        "score_tasks": 4,
        "int8": True,
        "search": ("random",),
        "evaluations": 40,
    }
    told = []
    config = dense_config(tmp_path / "dense", **ENV)
    result = compress(config, settings(tmp_path, **changes), say=told.append)
    summary = result.summary
    models = [
        AutoModelForCausalLM.from_pretrained(result.run_dir / name) for name in ("sliced", "model")
    ]
    first, second = (model.state_dict() for model in models)
    assert all(first[name].shape == second[name].shape for name in second)
    assert any(not torch.equal(first[name], second[name]) for name in second)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    report = read_splits(result.run_dir / "texts.safetensors").report
    kls = [model_kl(dense, model.eval(), report) for model in models]
    assert kls == pytest.approx([summary["sliced_kl"], summary["report_kl"]], rel=1e-3)
    assert is_int8(str(result.run_dir / "model-int8"))
    assert 0 < summary["int8"]["bytes"] < summary["model"]["bytes"]
    assert summary["int8"]["difference"] < 0.1
    assert sum("rerank: KL" in line for line in told) == 2
    assert summary["scores"]["dense"]["low"] <= summary["scores"]["dense"]["mean"]


def test_a_recovery_needs_prompts(tmp_path):
    save_dense(tmp_path / "dense")
    write_text(tmp_path / "text.txt")
    changed = settings(tmp_path, recover="sft")
    with pytest.raises(ConfigError, match=r"--recover sft lets .* Name an environment with --env"):
        compress(dense_config(tmp_path / "dense"), changed, has_env=False)
    with pytest.raises(ConfigError, match="--recover-minutes must be above 0"):
        settings(tmp_path, recover_minutes=0.0)
