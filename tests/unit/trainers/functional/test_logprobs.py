import math

import pytest
import torch

from trainers.functional.logprobs import entropy_of, linear_logprobs

N, D, V = 20, 16, 33
CHUNKS = (1, 7, N + 5)


def leaves(*, bias=True, dtype=torch.float32, seed=0):
    """hidden [N, D], weight [V, D], bias [V] or None as leaves, and targets [N]."""
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=rng)
    weight = torch.randn(V, D, generator=rng) * 0.5
    offset = torch.randn(V, generator=rng) if bias else None
    targets = torch.randint(V, (N,), generator=rng)
    made = [None if one is None else one.to(dtype).requires_grad_()
            for one in (hidden, weight, offset)]  # fmt: skip
    return *made, targets


def naive(hidden, weight, bias, targets, *, temperature=1.0, softcap=None):
    """Log-probabilities and entropies by the definition, in float64, all logits at once."""
    logits = hidden.double() @ weight.double().T
    logits = logits if bias is None else logits + bias.double()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logp = (logits / temperature).log_softmax(-1)
    return logp[torch.arange(len(targets)), targets], -(logp.exp() * logp).sum(-1)


def weighed(logprobs, entropies=None):
    """A loss in which every token counts differently."""
    share = torch.linspace(-1, 2, N).to(logprobs.dtype)
    loss = (share * logprobs).sum()
    return loss if entropies is None else loss + (share.flip(0) * entropies).sum()


def gradients(loss, tensors):
    return torch.autograd.grad(loss, [one for one in tensors if one is not None])


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_equals_naive_in_value_and_gradient(chunk, bias, softcap, temperature):
    *tensors, targets = leaves(bias=bias)
    options = {"temperature": temperature, "softcap": softcap}

    logprobs, entropies = linear_logprobs(*tensors, targets, chunk=chunk, **options)

    expected, _ = naive(*tensors, targets, **options)
    assert entropies is None
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        gradients(weighed(logprobs), tensors), gradients(weighed(expected), tensors), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_tied_head_sums_both_gradients(chunk):
    _, weight, _, targets = leaves()
    ids = torch.arange(N) % V

    logprobs, _ = linear_logprobs(torch.tanh(weight[ids]), weight, None, targets, chunk=chunk)

    expected, _ = naive(torch.tanh(weight[ids]), weight, None, targets)
    (ours,), (theirs,) = (gradients(weighed(one), [weight]) for one in (logprobs, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_entropy_in_the_loss_has_its_value_and_gradient(chunk):
    *tensors, targets = leaves()

    ours = linear_logprobs(*tensors, targets, chunk=chunk, temperature=0.8, entropy="loss")

    expected = naive(*tensors, targets, temperature=0.8)
    torch.testing.assert_close(ours[1].double(), expected[1], rtol=1e-5, atol=1e-5)
    pairs = zip(
        gradients(weighed(*ours), tensors), gradients(weighed(*expected), tensors), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_entropy_as_a_metric_has_the_value_and_no_gradient(chunk):
    *tensors, targets = leaves()

    logprobs, entropies = linear_logprobs(*tensors, targets, chunk=chunk, entropy="metric")

    torch.testing.assert_close(
        entropies.double(), naive(*tensors, targets)[1], rtol=1e-5, atol=1e-5
    )
    assert not entropies.requires_grad
    with_metric = gradients(weighed(logprobs), tensors)
    alone = gradients(weighed(linear_logprobs(*tensors, targets, chunk=chunk)[0]), tensors)
    assert all(map(torch.equal, with_metric, alone))


@pytest.mark.parametrize("entropy", ["none", "metric", "loss"])
def test_no_tokens_give_no_figures_and_a_zero_gradient(entropy):
    hidden, weight, bias, targets = leaves()

    logprobs, entropies = linear_logprobs(hidden[:0], weight, bias, targets[:0], entropy=entropy)

    assert logprobs.shape == (0,)
    assert (entropies is None) == (entropy == "none")
    for gradient in gradients(logprobs.sum(), [hidden, weight, bias]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_bfloat16_states_are_normalized_in_float32():
    *tensors, targets = leaves(dtype=torch.bfloat16)

    logprobs, entropies = linear_logprobs(*tensors, targets, chunk=7, entropy="metric")

    assert logprobs.dtype == entropies.dtype == torch.float32
    expected = naive(*tensors, targets)
    torch.testing.assert_close(logprobs.double(), expected[0], rtol=0, atol=0.03)
    torch.testing.assert_close(entropies.double(), expected[1], rtol=0, atol=0.03)


def test_bfloat16_probabilities_still_sum_to_one_over_a_large_vocabulary():
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 8, generator=rng, dtype=torch.bfloat16)
    weight = torch.randn(5000, 8, generator=rng, dtype=torch.bfloat16) * 0.1

    logprobs, _ = linear_logprobs(hidden.expand(5000, 8), weight, None, torch.arange(5000))

    assert float(logprobs.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_entropy_of_certainty_is_zero_and_of_ignorance_is_the_largest():
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [1.0, 1.0, 1.0]], requires_grad=True)

    entropies = entropy_of(torch.log_softmax(logits, dim=-1))
    entropies.sum().backward()

    torch.testing.assert_close(entropies, torch.tensor([0.0, math.log(3)]))
    assert logits.grad.isfinite().all()


def test_without_gradients_nothing_is_recomputed_and_the_figures_are_the_same():
    *tensors, targets = leaves()
    trained, _ = linear_logprobs(*tensors, targets, chunk=7)
    with torch.no_grad():
        scored, _ = linear_logprobs(*tensors, targets, chunk=7)

    assert torch.equal(trained, scored)
