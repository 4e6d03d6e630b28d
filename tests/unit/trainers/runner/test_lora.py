"""Whole runs with adapters: what they start from, are held against, write, and how they go on."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests import tiny
from tests.unit.trainers.runner.stages.test_reward_model_stage import comments
from trainers.checkpoint.loading import find, load
from trainers.cli import main as cli
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.run_dir.record import lines
from trainers.runner.run import run

LORA = {"model.lora.rank": 3, "model.lora.alpha": 6.0, "ppo.learning_rate": 1e-2}
TOKENS = torch.arange(3, 19).view(2, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@torch.no_grad()
def logits(model):
    return model(TOKENS, use_cache=False).logits


def metrics(folder):
    return [line for line in lines(folder / "metrics.jsonl") if "loss/total" in line]


@pytest.fixture(scope="module", params=["separate", "shared"])
def done(request, model, tmp_path_factory):
    """The folder of a run of adapters, by the critic it has."""
    changes = {**LORA, "ppo.critic": request.param, "ppo.num_epochs": 1, "ppo.num_minibatches": 1}
    config = tiny.run_settings(model, tmp_path_factory.mktemp("runs"), **changes)
    return request.param, run(config, reward=tiny.letters).run_dir


def test_sampling_scoring_and_reference_start_as_one(done):
    first, second = metrics(done[1])
    assert first["objective/kl"] == 0, "the reference is the policy, whose adapters add nothing yet"
    assert abs(second["objective/kl"]) > 1e-4
    for figures in (first, second):
        assert figures["policy/ratio_max"] == pytest.approx(1, abs=1e-6)
        assert figures["policy/generator_logp_diff_max"] < 1e-5


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft calls it
def test_a_run_writes_a_merged_model_and_its_adapters_and_leaves_the_base(done, model):
    _, folder = done
    merged = AutoModelForCausalLM.from_pretrained(folder / "model")
    base = AutoModelForCausalLM.from_pretrained(model)
    assert not torch.allclose(logits(merged), logits(base), atol=1e-3)
    settings = json.loads((folder / "model" / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (3, 6.0)
    assert settings["base_model_name_or_path"] == str(model)
    adapted = peft.PeftModel.from_pretrained(base, folder / "model" / "adapter")
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=0, atol=1e-5)
    critic = load_file(folder / "critic" / "model.safetensors")
    assert not any("lora" in name for name in critic)


def test_a_checkpoint_holds_what_learns_alone(done, model):
    critic, folder = done
    (state,) = load(find(folder / "checkpoints", "ppo").path).parts["learner"]
    names = {*state["policy"]["weights"], *state["critic"].get("weights", {})}
    heads = {name for name in names if ".lora_" not in name}
    assert heads == {"value_head.weight", "value_head.bias"} if critic == "shared" else heads
    assert all("score" in name or "value_head" in name for name in heads)
    size = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    assert sum(one.numel() * 4 for one in state["policy"]["weights"].values()) < size / 4


def test_the_exported_run_is_checked_and_keeps_its_adapters(done, tmp_path, capsys):
    assert cli.main(["export", str(done[1]), "--out", str(tmp_path / "out")]) == 0
    assert "log-probabilities are equal to the last bit" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_critic_may_learn_whole_beside_adapters(model, tmp_path):
    config = tiny.run_settings(model, tmp_path, **LORA, **{"model.lora.critic": "whole"})
    folder = run(config, reward=tiny.letters, loggers=[]).run_dir
    (state,) = load(find(folder / "checkpoints", "ppo").path).parts["learner"]
    assert "model.model.embed_tokens.weight" in state["critic"]["weights"]
    assert all(".lora_" in name for name in state["policy"]["weights"])


def test_a_resume_with_other_weights_behind_the_path_is_refused(model, tmp_path):
    changes = {**LORA, "ppo.kl_placement": "none", "ppo.num_iterations": 1}
    config = tiny.run_settings(model, tmp_path, **changes)
    tiny.save_model(tmp_path / "model")
    config = tiny.run_settings(tmp_path / "model", tmp_path, **changes)
    run(config, reward=tiny.letters, loggers=[])
    other = tiny.llama(seed=1, vocab_size=AutoModelForCausalLM.from_pretrained(model).vocab_size)
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="other reference"):
        run(config, reward=tiny.letters, loggers=[], resume=True)


def test_adapters_learn_without_a_critic_held_by_a_kl_in_the_reward(model, tmp_path):
    arm = {"ppo.critic": "none", "ppo.advantage": "rloo", "ppo.samples_per_prompt": 4}
    change = {**LORA, **arm, "ppo.kl_placement": "reward"}
    change |= {"ppo.num_epochs": 1, "ppo.num_iterations": 3}
    moved = {}
    for kl_coef in (0.001, 10.0):
        runs = tmp_path / str(kl_coef)
        config = tiny.run_settings(model, runs, **{**change, "ppo.kl_coef": kl_coef})
        first, second, third = metrics(run(config, reward=tiny.letters).run_dir)
        assert first["objective/kl"] == 0
        assert "value/explained_var" not in first
        assert second["objective/kl"] > 1e-4, "adapters did not learn"
        moved[kl_coef] = third["objective/kl"]
    assert moved[0.001] != moved[10.0], "the KL has no part in the rewards of the second update"


SFT = {"sft.num_epochs": 2, "sft.batch_size": 8, "sft.learning_rate": 1e-2, "data.num_examples": 24}


def test_demonstrations_are_learned_by_adapters_and_merged_into_the_base(model, tmp_path):
    config = tiny.run_settings(model, tmp_path, **LORA, **SFT, **{"ppo.num_iterations": 1})
    folder = run(config, loggers=[]).run_dir
    base, began = (load_file(one / "model.safetensors") for one in (folder / "base", model))
    assert base.keys() == began.keys()
    moved = {name for name in base if not torch.equal(base[name], began[name])}
    assert moved == {name for name in base if name.endswith("_proj.weight")}
    (state,) = load(find(folder / "checkpoints", "sft").path).parts["engine"]
    assert all(".lora_" in name for name in state["weights"])
    settings = json.loads((folder / "model" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folder / "base")


def test_a_fresh_model_learns_demonstrations_whole_and_ppo_by_adapters(tmp_path):
    changes = {"model.context": 64, **LORA, **SFT, "ppo.num_iterations": 1, "eval.num_tasks": 0}
    short = {"generation.max_prompt_tokens": 40, "generation.max_new_tokens": 4}
    size = {"ppo.num_prompts": 4, "ppo.samples_per_prompt": 1, "run.dir": str(tmp_path)}
    folder = run(read([], {**changes, **short, **size}), loggers=[]).run_dir
    (state,) = load(find(folder / "checkpoints", "sft").path).parts["engine"]
    assert "model.model.embed_tokens.weight" in state["weights"]
    (state,) = load(find(folder / "checkpoints", "ppo").path).parts["learner"]
    assert all(".lora_" in name for name in state["policy"]["weights"])


def test_a_reward_model_learns_adapters_and_its_head(tmp_path):
    began = comments(tmp_path)
    first = run(read([], {**began, "run.name": "whole"}), loggers=[]).run_dir / "model"
    lora = {"model.path": str(first), "model.lora.rank": 3, "reward_model.learning_rate": 1e-2}
    folder = run(read([], {**began, **lora}), loggers=[]).run_dir
    AutoModelForSequenceClassification.from_pretrained(folder / "model")
    one, other = (load_file(part / "model.safetensors") for part in (first, folder / "model"))
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == {n for n in one if n.endswith("_proj.weight") or n.startswith("score.")}


def test_a_reward_model_from_nothing_is_refused_adapters(tmp_path):
    config = read([], {**comments(tmp_path), "model.lora.rank": 3})
    with pytest.raises(ConfigError, match="begins with a fresh one, whose every weight"):
        run(config, loggers=[])
