"""int8 layers against the sums of their definition, and models made of them."""

import pytest
import torch
from torch import nn

from tests.tiny import llama
from tests.unit.trainers.compress.tiny_models import model_of
from trainers.errors import ConfigError
from trainers.generation.llama import agrees
from trainers.models import int8
from trainers.models.int8 import Int8Linear, linear_layers, quantize_model, quantize_rows


def layer(seed=0, rows=24, columns=32):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=rng) * torch.rand(rows, 1, generator=rng)
    return weight, torch.randn(rows, generator=rng), rng


def test_a_row_is_within_half_a_step_of_its_weights():
    weight, _, _ = layer()
    weight[3] = 0.0
    numbers, scale = quantize_rows(weight)
    assert numbers.dtype == torch.int8
    assert ((numbers * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-7).all()
    assert (numbers.abs().amax(1)[scale != 1] == 127).all()
    assert not numbers[3].any()


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_product_is_that_of_quantized_weights_and_activations(tokens):
    weight, bias, rng = layer()
    states = torch.randn(tokens, 32, generator=rng) * torch.logspace(-2, 3, tokens)[:, None]
    numbers, scale = quantize_rows(weight)
    made = Int8Linear(numbers, scale, bias)(states)
    exact = states @ (numbers.float() * scale[:, None]).T + bias
    # An activation is off by at most half a step of the largest range a token can have.
    step = 2 * states.abs().amax(1, keepdim=True) / 127
    bound = step / 2 * (numbers.float() * scale[:, None]).abs().sum(1) + 1e-5 * exact.abs().max()
    assert ((made - exact).abs() <= bound).all()


def test_a_token_keeps_its_precision_beside_one_that_is_a_thousand_times_larger():
    weight, _, rng = layer()
    states = torch.randn(2, 32, generator=rng)
    made = Int8Linear(*quantize_rows(weight))
    alone = made(states[1:])
    beside = made(torch.cat([1000 * states[:1], states[1:]]))[1:]
    exact = states[1:] @ weight.T
    assert (beside - exact).abs().max() < 0.03 * exact.abs().max()
    assert (beside - alone).abs().max() < 0.03 * exact.abs().max()


def test_states_of_any_shape_and_type():
    weight, bias, rng = layer()
    made, states = Int8Linear(*quantize_rows(weight), bias), torch.randn(2, 3, 32, generator=rng)
    assert made(states).shape == (2, 3, 24)
    assert made(states.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(made(states).reshape(6, 24), made(states.reshape(6, 32)))
    numbers, scale = made.weights()
    assert torch.equal(numbers, quantize_rows(weight)[0])
    assert torch.allclose(scale, quantize_rows(weight)[1])


@pytest.mark.parametrize("kind", ["llama", "llama biased", "qwen2", "qwen3"])
def test_a_model_computes_about_the_same_and_is_written_by_the_fast_forward(kind):
    model, tokens = model_of(kind), torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        dense = model(tokens).logits
        made = quantize_model(model)(tokens).logits
    assert not linear_layers_left(model)
    assert 0 < (made - dense).abs().max() < 0.2 * dense.abs().max()
    if kind != "qwen2":  # whose window is shorter than the rows that are tried
        assert agrees(model)


def linear_layers_left(model):
    return [part for part in model.modules() if type(part) is nn.Linear]


def test_the_head_can_stay():
    model = quantize_model(llama(), head=False)
    assert linear_layers_left(model) == [model.lm_head]


def test_a_model_without_linear_layers_is_refused():
    model = llama()
    model.model.layers = nn.ModuleList()
    with pytest.raises(ConfigError, match="has no plain linear layers"):
        linear_layers(model)


def test_a_processor_without_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(int8, "INT8_KERNEL", "of_nobody")
    with pytest.raises(ConfigError, match="no int8 kernels for this processor"):
        quantize_model(llama())
