"""The engine `speculative` in a run: refusals before weights load, and rollouts of the same law."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from trainers.config.files import preset, read
from trainers.errors import ConfigError
from trainers.generation.speculative import check_engine, rule_of
from trainers.run_dir.record import lines
from trainers.runner.run import run

ENGINE = "generation.engine"
DRAFTER = "generation.speculative.drafter"
CONTROLLER = "generation.speculative.controller"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tuple(tiny.save_model(tmp_path_factory.mktemp(name)) for name in ("target", "drafter"))


def trained(model, folder, **changes):
    done = run(tiny.run_settings(model, folder, **changes), reward=tiny.letters)
    rows = [line for line in lines(done.run_dir / "metrics.jsonl") if "objective/scores" in line]
    return rows, load_file(done.run_dir / "model" / "model.safetensors")


def test_a_run_without_drafts_is_that_of_the_exact_engine(models, tmp_path):
    model, drafter = models
    plain, expected = trained(model, tmp_path / "plain")
    rows, weights = trained(
        model,
        tmp_path / "drafted",
        **{ENGINE: "speculative", DRAFTER: str(drafter), "generation.speculative.length": 0},
    )
    for ours, theirs in zip(rows, plain, strict=True):
        assert ours["objective/scores"] == pytest.approx(theirs["objective/scores"])
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)


def test_a_drafter_writes_with_the_log_probabilities_of_the_trainer(models, tmp_path):
    model, drafter = models
    changes = {ENGINE: "speculative", DRAFTER: str(drafter), "ppo.old_logprobs": "recompute"}
    rows, _ = trained(model, tmp_path, **changes)
    for row in rows:
        assert row["policy/generator_logp_diff_max"] < 1e-4


def test_a_trained_controller_decides(models, tmp_path):
    changes = {
        "run.dir": str(tmp_path),
        "run.name": "controller",
        "envs.0.id": "llmgym/Speculative-v0",
        "ppo.num_iterations": 1,
        "eval.num_tasks": 0,
    }
    folder = run(read([preset("cartpole")], changes), loggers=[]).run_dir / "model"
    model, drafter = models
    changes = {ENGINE: "speculative", DRAFTER: str(drafter), CONTROLLER: str(folder)}
    config = tiny.run_settings(model, tmp_path, **changes)
    check_engine(config)
    rows, _ = trained(model, tmp_path / "run", **changes)
    assert rows


def test_settings_choose_the_rule(models):
    def chosen(**settings):
        names = {f"generation.speculative.{name}": value for name, value in settings.items()}
        return rule_of(tiny.run_settings(models[0], "runs", **names).generation.speculative)

    class View:
        depth, drafted = 2, [(0.0, 0.5, 0.0)]

    assert (chosen(length=3)(View), chosen(length=2)(View)) == (True, False)
    assert (chosen(entropy=1.0)(View), chosen(entropy=0.1)(View)) == (True, False)


def test_two_rules_at_once_are_refused(models):
    both = {"generation.speculative.entropy": 1.0, CONTROLLER: "runs/controller/model"}
    with pytest.raises(ConfigError, match="one rule"):
        tiny.run_settings(models[0], "runs", **both)


def refusal(model, **changes):
    with pytest.raises(ConfigError) as raised:
        check_engine(tiny.run_settings(model, "runs", **{ENGINE: "speculative", **changes}))
    return str(raised.value)


def test_what_cannot_draft_is_refused_before_weights_load(models, tmp_path):
    model, drafter = models
    assert "name its folder" in refusal(model)
    zero = {"backend.name": "deepspeed", "backend.zero.stage": 3, DRAFTER: str(drafter)}
    assert "zero.stage 2" in refusal(model, **zero)
    assert "makes one" in refusal(model, **{DRAFTER: str(drafter), CONTROLLER: str(tmp_path)})
    file = json.loads((drafter / "tokenizer.json").read_text())
    token = next(iter(file["model"]["vocab"]))
    file["model"]["vocab"][f"{token}{token}"] = file["model"]["vocab"].pop(token)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    assert "another vocabulary" in refusal(model, **{DRAFTER: str(tmp_path)})


def test_a_drafter_with_another_number_of_ids_is_refused(models, tmp_path):
    model = models[0]
    other = tiny.llama(vocab_size=40)
    other.save_pretrained(tmp_path / "other")
    config = tiny.run_settings(
        model, tmp_path, **{ENGINE: "speculative", DRAFTER: str(tmp_path / "other")}
    )
    with pytest.raises(ConfigError, match="has 40 ids"):
        run(config, reward=tiny.letters, loggers=[])
