"""The halves of a decoder layer against their equations in float64, forward and backward."""

import pytest
import torch

from trainers.functional import decoder

N, D, F, H, K, S = 23, 12, 20, 3, 1, 4
EPS = 1e-3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Let the tokens be several blocks, the last of them shorter."""
    monkeypatch.setattr(decoder, "TOKENS_AT_ONCE", 8)


def numbers(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(states, weight):
    return states / (states.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def turn(states, angles):
    """Multiply each pair, of a head's first and second half, by e^(i angle)."""
    real, imaginary = states.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)


def by_definition_projected(states, weight, *linear, angles):
    biases = linear[3:] or (0.0, 0.0, 0.0)
    parts = [
        (norm(states, weight) @ matrix.T + bias).unflatten(1, (-1, S))
        for matrix, bias in zip(linear[:3], biases, strict=True)
    ]
    return turn(parts[0], angles), turn(parts[1], angles), parts[2], states


def by_definition_gated(states, weight, gate, up, down):
    inner = norm(states, weight)
    opened = inner @ gate.T
    return (states + (opened / (1 + (-opened).exp()) * (inner @ up.T)) @ down.T,)


def computed_projected(states, weight, *linear, angles):
    sides = (torch.cat([angles, angles], dim=1).float(),) * 2
    cos_sin = (sides[0].cos(), sides[1].sin())
    return decoder.projected(states, weight, linear, cos_sin, eps=EPS)


def computed_gated(states, weight, *linear):
    return (decoder.gated(states, weight, linear, eps=EPS),)


def arguments(kind, *, biased=False):
    states, weight = numbers(N, D, seed=0), 1 + 0.3 * numbers(D, seed=1)
    sizes = [(F, D), (F, D), (D, F)] if kind == "gated" else [(H * S, D), (K * S, D), (K * S, D)]
    if biased:
        sizes += [(H * S,), (K * S,), (K * S,)]
    return [states, weight, *(0.4 * numbers(*size, seed=i) for i, size in enumerate(sizes, 2))]


def results(function, inputs, dtype, **settings):
    """Return outputs, and gradients of a weighted sum of them, in float64."""
    mine = [part.to(dtype).requires_grad_() for part in inputs]
    outputs = function(*mine, **settings)
    loss = sum(
        (part * numbers(*part.shape, seed=20 + i).to(part.dtype)).sum()
        for i, part in enumerate(outputs)
    )
    gradients = torch.autograd.grad(loss, mine)
    return [part.detach().double() for part in (*outputs, *gradients)]


def largest_errors(found, expected):
    assert len(found) == len(expected)
    pairs = zip(found, expected, strict=True)
    return [float((left - right).abs().max() / right.abs().max()) for left, right in pairs]


@pytest.mark.parametrize("biased", [False, True])
def test_the_first_half_is_norm_product_and_turn_with_their_gradients(biased):
    inputs, angles = arguments("projected", biased=biased), numbers(N, S // 2, seed=9)
    expected = results(by_definition_projected, inputs, torch.float64, angles=angles)
    found = results(computed_projected, inputs, torch.float32, angles=angles)
    assert max(largest_errors(found, expected)) < 1e-5


def test_the_second_half_is_a_gated_product_added_to_the_states_with_its_gradients():
    inputs = arguments("gated")
    expected = results(by_definition_gated, inputs, torch.float64)
    found = results(computed_gated, inputs, torch.float32)
    assert max(largest_errors(found, expected)) < 1e-5


def test_a_norm_has_its_gradients():
    inputs = arguments("gated")[:2]
    expected = results(lambda *args: (norm(*args),), inputs, torch.float64)
    found = results(lambda *args: (decoder.normed(*args, eps=EPS),), inputs, torch.float32)
    assert max(largest_errors(found, expected)) < 1e-5


@pytest.mark.parametrize("kind", ["projected", "gated"])
def test_products_in_bfloat16_are_as_near_as_those_of_torch(kind):
    """The equations under autocast, operation by operation, are the other side."""
    settings = {"angles": numbers(N, S // 2, seed=9)} if kind == "projected" else {}
    names = {
        "projected": (by_definition_projected, computed_projected),
        "gated": (by_definition_gated, computed_gated),
    }
    by_definition, computed = names[kind]
    inputs = arguments(kind)
    expected = results(by_definition, inputs, torch.float64, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        float32 = {name: angle.float() for name, angle in settings.items()}
        plain = results(by_definition, inputs, torch.float32, **float32)
        found = results(computed, inputs, torch.float32, **settings)
    assert 0 < sum(largest_errors(found, expected)) < 1.2 * sum(largest_errors(plain, expected))


@pytest.mark.parametrize("kind", ["projected", "gated"])
def test_blocks_do_not_change_what_is_computed(kind, monkeypatch):
    settings = {"angles": numbers(N, S // 2, seed=9)} if kind == "projected" else {}
    computed = computed_projected if kind == "projected" else computed_gated
    in_blocks = results(computed, arguments(kind), torch.float32, **settings)
    monkeypatch.setattr(decoder, "TOKENS_AT_ONCE", N)
    at_once = results(computed, arguments(kind), torch.float32, **settings)
    assert max(largest_errors(in_blocks, at_once)) < 1e-6
