"""Which models the lean layers read, and what of a prompt the last of them computes."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tests.unit.trainers.models.families import family_model, ragged_inputs
from trainers.models import lean_layers
from trainers.models.causal_lm import hidden_states
from trainers.models.lean_layers import reads_lean
from trainers.models.loading import enable_checkpointing
from trainers.models.packed_rows import Layout, longest_packed
from trainers.models.packing import describe_rows, pack_rows


def biased(model):
    model.model.layers[1].mlp.down_proj.bias = nn.Parameter(torch.ones(32))


def with_adapters(model):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model)


def with_another_gate(model):
    model.model.layers[0].mlp.act_fn = nn.GELU()


def hooked(model):
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_args: None)


def in_bfloat16(model):
    model.to(torch.bfloat16)


CHANGES = [biased, with_adapters, with_another_gate, hooked, in_bfloat16, enable_checkpointing]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_families_of_the_layout_are_read_lean_and_so_is_a_copy(family):
    model = family_model(family)
    assert pack_rows(model)
    assert reads_lean(model.model)
    assert reads_lean(copy.deepcopy(model).model)
    assert describe_rows(model).endswith("layers with a written-out gradient")


@pytest.mark.parametrize("family", ["gemma", "granite", "qwen3"])
def test_other_families_read_packed_rows_by_their_own_forward(family):
    model = family_model(family)
    assert describe_rows(model) == ""
    assert pack_rows(model)
    assert not reads_lean(model.model)
    assert describe_rows(model) == "packed, no padding is computed"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_whose_modules_must_run_is_read_by_its_own_forward(change):
    model = family_model("llama").train()
    assert pack_rows(model)
    change(model)
    assert not reads_lean(model.model)
    assert longest_packed(model)
    runs = []
    model.model.layers[1].mlp.register_forward_hook(lambda *_args: runs.append(1))
    hidden_states(model.model, ragged_inputs()[0])
    assert runs


def test_layers_that_compute_something_else_are_not_used(monkeypatch):
    monkeypatch.setattr(lean_layers, "normed", lambda states, _weight, **_settings: states)
    model = family_model("llama")
    assert pack_rows(model)
    assert not reads_lean(model.model)


def test_the_last_layer_computes_the_states_that_are_read_alone(monkeypatch):
    model, (inputs, mask) = family_model("llama"), ragged_inputs()
    assert pack_rows(model)
    counts = []
    gated = lean_layers.gated

    def counting(states, *args, **settings):
        counts.append(len(states))
        return gated(states, *args, **settings)

    monkeypatch.setattr(lean_layers, "gated", counting)
    hidden_states(model.model, inputs)
    read = len(mask) + int(mask.sum())  # the last token of each prompt, and the responses
    assert counts == [len(Layout.of(inputs).source), read]
    assert read < counts[0]


def test_without_a_gradient_the_states_are_the_same():
    model, (inputs, _) = family_model("llama"), ragged_inputs()
    assert pack_rows(model)
    with torch.no_grad():
        found = hidden_states(model.model, inputs)
    assert torch.equal(found, hidden_states(model.model, inputs).detach())
