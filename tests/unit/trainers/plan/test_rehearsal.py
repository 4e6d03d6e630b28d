"""What is counted on fake tensors is what real ones take."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from tests.slow import slow
from tests.unit.trainers.models.families import FAMILIES, family_model, ragged_inputs
from trainers.config import (
    BackendConfig,
    Config,
    DimensionsConfig,
    GenerationConfig,
    LoRAConfig,
    ModelConfig,
)
from trainers.config.ppo import PPOConfig
from trainers.errors import ConfigError
from trainers.generation.kv_cache import roomy_cache
from trainers.models.adapters import adapt
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic_folders import build_critic
from trainers.models.loading import count_parameters
from trainers.models.presets import fresh_llama, llama_config
from trainers.plan.counting import counted
from trainers.plan.fakes import grouped_result
from trainers.plan.forecast import forecast_text
from trainers.plan.rehearsal import Rehearsal, cache_bytes
from trainers.plan.shapes import shapes_of

CONFIG = Config(
    model=ModelConfig(dimensions=DimensionsConfig(num_layers=2)),
    generation=GenerationConfig(max_prompt_tokens=12, max_new_tokens=4),
    backend=BackendConfig(micro_batch_tokens=64),
    ppo=PPOConfig(num_iterations=2, num_prompts=8, samples_per_prompt=1),
)


def with_(config, **sections):
    return replace(config, **{
        name: replace(getattr(config, name), **changes) for name, changes in sections.items()
    })  # fmt: skip


def test_the_peak_is_what_is_alive_at_once():
    def work():
        one = torch.ones(1000)  # 4,000 bytes
        two = one + one  # 8,000
        del one  # 4,000
        three = two * two  # 8,000
        return three.view(10, 100)  # no bytes of its own

    usage = counted(work, [])
    assert (usage.peak, usage.written) == (8000, 12_000)


def test_gradients_are_told_apart_and_weights_do_not_count():
    layer = nn.Linear(100, 50, bias=False)
    rows = torch.ones(10, 100)
    usage = counted(lambda: layer(rows).sum().backward(), [layer])
    assert usage.gradients == 100 * 50 * 4
    assert usage.peak < 10 * 50 * 4 * 3
    assert usage.flops == 2 * (2 * 10 * 100 * 50)


def test_what_stood_before_counts_as_memory_and_not_as_work():
    kept = []
    usage = counted(lambda: torch.ones(10), [], lambda: kept.append(torch.ones(1000)))
    assert (usage.peak, usage.written, usage.calls) == (4040, 40, 1)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_parameters_are_those_of_the_real_models(critic):
    config = with_(CONFIG, ppo={"critic": critic}, model={"vocab_size": 300})
    shapes = shapes_of(config)
    model = fresh_llama(llama_config(config.model, 300), 0)
    head = 129
    assert shapes.num_reference == count_parameters(model)
    if critic == "shared":
        assert (shapes.num_policy, shapes.num_critic) == (count_parameters(model) + head, 0)
    else:
        assert shapes.num_policy == count_parameters(model)
        assert shapes.num_critic == count_parameters(build_critic(model))


@pytest.mark.parametrize(
    ("critic", "lora"),
    [("separate", "adapters"), slow("separate", "whole"), slow("shared", "adapters")],
)
def test_of_adapters_only_what_learns_has_gradients_and_moments(critic, lora):
    adapters = LoRAConfig(rank=3, critic=lora)
    config = with_(CONFIG, ppo={"critic": critic}, model={"vocab_size": 300, "lora": adapters})
    shapes = shapes_of(config)
    model = fresh_llama(llama_config(config.model, 300), 0)
    size = count_parameters(model)
    adapt(model, adapters, seed=0)
    thin = count_parameters(model) - size
    head = 129
    learned = {"policy": thin + (head if critic == "shared" else 0)}
    if critic == "separate":
        learned["critic"] = {"adapters": thin + head, "whole": shapes.num_critic}[lora]
    assert shapes.num_learned == learned
    found = forecast_text(config, shapes, dtype=torch.float32)
    assert "reference" not in found.parameters
    update = next(phase for phase in found.memory if phase.name == "update")
    assert update.weights == 4 * (shapes.num_policy + shapes.num_critic)
    assert update.optimizer == 8 * sum(learned.values())
    assert update.gradients <= 4 * sum(learned.values())


@pytest.mark.parametrize("family", ["llama", "mixtral", *map(slow, FAMILIES[1:])])
def test_a_pass_of_a_real_model_takes_what_its_rehearsal_takes(family, tmp_path):
    model = family_model(family)
    model.save_pretrained(tmp_path)
    inputs, mask = ragged_inputs(num_prompt=5, num_actions=4, rows=4)
    config = with_(
        CONFIG,
        model={"path": str(tmp_path), "dimensions": DimensionsConfig()},
        generation={"max_prompt_tokens": 5, "max_new_tokens": 4},
    )
    rehearsed = Rehearsal(shapes_of(config), config, torch.float32).logprobs(4)
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    full = torch.ones_like(mask)
    with torch.no_grad():
        real = counted(lambda: policy(inputs, full), [policy])
    assert rehearsed.flops == pytest.approx(real.flops, rel=0.02)
    assert rehearsed.peak == pytest.approx(real.peak, rel=0.15)


def test_recomputing_activations_takes_less_memory_and_more_work():
    rehearsal = Rehearsal(shapes_of(CONFIG), CONFIG, torch.float32)
    lean = with_(CONFIG, backend={"gradient_checkpointing": True})
    saved = Rehearsal(shapes_of(lean), lean, torch.float32).learning(256, micro_batches=1)
    plain = rehearsal.learning(256, micro_batches=1)
    assert saved.peak + saved.gradients < 0.75 * (plain.peak + plain.gradients)
    assert saved.flops > 1.2 * plain.flops


def test_gradients_stand_already_when_a_second_micro_batch_begins():
    rehearsal = Rehearsal(shapes_of(CONFIG), CONFIG, torch.float32)
    shapes = shapes_of(CONFIG)
    everything = 4 * (shapes.num_policy + shapes.num_critic)
    assert rehearsal.learning(4, micro_batches=1).gradients < everything
    assert rehearsal.learning(4, micro_batches=2).gradients == everything


def test_gradients_that_are_shared_out_are_not_counted():
    rehearsal = Rehearsal(shapes_of(CONFIG), CONFIG, torch.float32)
    kept, shared = (rehearsal.learning(4, micro_batches=2, keeps=keeps) for keeps in (True, False))
    assert shared.gradients == 0
    assert shared.peak < kept.peak + kept.gradients


def test_weights_in_bfloat16_need_no_casts():
    whole, half = (
        Rehearsal(shapes_of(CONFIG, weights), CONFIG, torch.bfloat16).logprobs(1)
        for weights in (torch.float32, torch.bfloat16)
    )
    size = shapes_of(CONFIG).num_policy
    assert half.peak < whole.peak - size  # the casts of most weights, 2 bytes each


def cached(config, rows):
    return Rehearsal(shapes_of(config), config, torch.float32).generation(rows)[2]


@pytest.mark.parametrize("length", [1, 65, *map(slow, (4, 64, 66, 140))])
def test_the_cache_takes_what_writing_token_by_token_takes(length):
    config = with_(CONFIG, generation={"max_new_tokens": length})
    model = fresh_llama(llama_config(config.model, 512), 0)
    cache = roomy_cache(model.config)
    with torch.no_grad():
        model(torch.zeros(2, 12, dtype=torch.long), past_key_values=cache, use_cache=True)
        for _ in range(length):
            model(torch.zeros(2, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    assert cached(config, 2) == cache_bytes(cache)


def test_the_cache_grows_with_the_rows():
    assert cached(CONFIG, 8) == 2 * cached(CONFIG, 4)


def test_a_model_of_seventy_billion_is_rehearsed_without_its_memory():
    sizes = DimensionsConfig(
        hidden_size=8192, intermediate_size=28672, num_layers=80, num_heads=64, num_kv_heads=8,
        tied=False,
    )  # fmt: skip
    model = ModelConfig(path="no/such-model", dimensions=sizes, vocab_size=128256)
    config = replace(CONFIG, model=model, ppo=replace(CONFIG.ppo, critic="shared"))
    shapes = shapes_of(config)
    assert shapes.num_reference == 70_553_706_496
    usage = Rehearsal(shapes, config, torch.float32).logprobs(1)
    assert usage.flops > 2 * 16 * (shapes.num_reference - 2 * 128256 * 8192)


def test_every_phase_of_a_run_is_forecast():
    config = with_(CONFIG, sft={"num_epochs": 1}, data={"num_examples": 100})
    forecast = forecast_text(config, shapes_of(config), dtype=torch.float32)
    held = {one.name: one.weights + one.optimizer for one in forecast.memory}
    phases = ["sft", "sft save", "rollout", "logprobs", "values", "update", "save", "evaluate"]
    assert list(held) == phases
    sizes = forecast.parameters
    assert held["sft"] == 12 * sizes["policy"]
    assert held["update"] == 12 * (sizes["policy"] + sizes["critic"]) + 4 * sizes["reference"]
    assert forecast.disk["model"] == 4 * sizes["policy"]
    assert forecast.peak.total == max(one.total for one in forecast.memory)


def test_products_of_experts_are_made_as_they_are_computed():
    rows, experts = torch.ones(8, 16), torch.ones(2, 16, 8)
    ends = torch.tensor([3, 8], dtype=torch.int32)
    for one, two in ((rows, experts), (rows.t(), torch.ones(8, 8))):
        real = torch._grouped_mm(one, two, offs=ends)
        assert grouped_result(one, two, ends).shape == real.shape


def test_a_model_without_a_fused_attention_is_planned(tmp_path):
    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}
    described = AutoConfig.for_model(
        "mamba2", vocab_size=64, hidden_size=32, num_hidden_layers=1, **sizes
    )
    described.save_pretrained(tmp_path)
    config = with_(CONFIG, model={"path": "far/away", "config": str(tmp_path / "config.json")})
    assert Rehearsal(shapes_of(config), config, torch.float32).logprobs(2).flops > 0


def test_a_pass_that_fails_is_a_note_that_says_why(monkeypatch):
    def failing(*_):
        raise ValueError("Shapes do not fit.\nMore of it.")

    monkeypatch.setattr(Rehearsal, "generation", failing)
    found = forecast_text(CONFIG, shapes_of(CONFIG), dtype=torch.float32)
    assert any(
        "LlamaForCausalLM fails where tensors hold no values (ValueError: Shapes do not fit.)"
        in one
        for one in found.notes
    )


def test_a_teacher_is_a_note():
    taught = with_(
        CONFIG,
        distill={"teacher": "t"},
        ppo={"critic": "none", "advantage": "teacher", "kl_placement": "none"},
    )
    found, plain = (forecast_text(c, shapes_of(c), dtype=torch.float32) for c in (taught, CONFIG))
    assert any("the teacher" in one for one in found.notes)
    assert not any("the teacher" in one for one in plain.notes)


def test_a_setting_that_is_wrong_is_no_note(monkeypatch):
    def refusing(*_):
        raise ConfigError("generation.max_new_tokens")

    monkeypatch.setattr(Rehearsal, "generation", refusing)
    with pytest.raises(ConfigError):
        forecast_text(CONFIG, shapes_of(CONFIG), dtype=torch.float32)
