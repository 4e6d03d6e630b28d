import math

import pytest
import torch
from torch import nn

from trainers.backends.torch import OptimizerSettings, TorchEngine
from trainers.errors import NonFiniteError

CPU = torch.device("cpu")


def engine(*, seed=0, rate=0.1, limit=1.0, dtype=torch.float32, **settings):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    chosen = OptimizerSettings(learning_rate=rate, max_grad_norm=limit, **settings)
    return TorchEngine(module, chosen, name="critic", device=CPU, dtype=dtype)


def inputs(seed=1):
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))


def learn(one, *, scale=1.0, seed=1):
    one.backward(scale * one.forward(inputs(seed)).square().sum())


def step(one, **how):
    learn(one, **how)
    norm = one.clip()
    one.step()
    return norm


def norm_of(one):
    return math.sqrt(sum(float(p.grad.square().sum()) for p in one.module.parameters()))


def bits(one):
    return [tensor.clone() for _, tensor in one.weights()]


def test_a_huge_loss_is_clipped_and_the_norm_before_is_reported():
    one = engine(limit=0.5)
    learn(one, scale=1e6)
    before = norm_of(one)

    reported = one.clip()

    assert reported == pytest.approx(before, rel=1e-5)
    assert reported > 1e4
    assert norm_of(one) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("apart", [0.0, 1e-8, 1e-7, 1e-6, 2e-6, 1e-5, 0.1])
@pytest.mark.parametrize("limit", [1e-5, 0.3, 0.5, 7.7])
def test_a_gradient_around_the_limit_is_clipped_as_torch_does_bit_for_bit(limit, apart):
    for norm in (limit - apart, limit + apart):
        one, other = engine(limit=limit), engine(limit=limit)
        for engine_ in (one, other):
            learn(engine_)
            with torch.no_grad():
                factor = norm / norm_of(engine_)
                for parameter in engine_.module.parameters():
                    parameter.grad *= factor

        one.clip()

        nn.utils.clip_grad_norm_(other.module.parameters(), limit)
        gradients = [[p.grad for p in each.module.parameters()] for each in (one, other)]
        assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("limit", [None, 1e9])
def test_a_gradient_within_the_limit_is_left_alone(limit):
    one = engine(limit=limit)
    learn(one, scale=1e3)
    before = [parameter.grad.clone() for parameter in one.module.parameters()]

    one.clip()

    after = [parameter.grad for parameter in one.module.parameters()]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_raises_before_a_weight_moves(poison):
    one = engine()
    step(one)
    before = bits(one)
    learn(one)
    one.module[2].weight.grad[0, 1] = poison

    with pytest.raises(
        NonFiniteError, match=r"critic is not finite; no weight .* tensor: 2.weight"
    ):
        one.clip()

    assert all(map(torch.equal, before, bits(one)))
    assert all(parameter.grad is None for parameter in one.module.parameters())


def test_a_norm_that_overflows_is_said_to_be_that():
    one = engine()
    learn(one)
    for parameter in one.module.parameters():
        parameter.grad.fill_(1e38)

    with pytest.raises(NonFiniteError, match="none alone, only their norm"):
        one.clip()


def test_one_step_is_adamw_s():
    one, twin = engine(limit=None, weight_decay=0.1), engine(limit=None)
    learn(one)
    learn(twin)
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    plain = torch.optim.AdamW(twin.module.parameters(), weight_decay=0.1, **settings)

    one.clip()
    one.step()
    plain.step()

    for ours, theirs in zip(bits(one), bits(twin), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_step_clears_the_gradient():
    one = engine()
    step(one)
    assert all(parameter.grad is None for parameter in one.module.parameters())


def test_gradients_of_several_backwards_add_up():
    one, twin = engine(), engine()
    learn(one, seed=1)
    learn(one, seed=2)
    both = twin.forward(torch.cat([inputs(1), inputs(2)])).square().sum()
    twin.backward(both)

    for ours, theirs in zip(one.module.parameters(), twin.module.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_rate_is_set_from_outside():
    one = engine()
    before = bits(one)
    one.set_learning_rate(0.0)
    step(one)

    assert all(map(torch.equal, before, bits(one)))


def test_a_state_restores_weights_and_moments_so_that_the_next_step_is_the_same():
    one, other = engine(seed=0), engine(seed=5)
    for _ in range(3):
        step(one)
    other.load_state_dict([one.state_dict()])
    assert all(map(torch.equal, bits(one), bits(other)))

    assert step(one) == step(other)

    assert all(map(torch.equal, bits(one), bits(other)))


def test_a_saved_state_does_not_move_with_the_engine():
    one, other = engine(), engine()
    step(one)
    state, before = one.state_dict(), bits(one)
    step(one)
    other.load_state_dict([state])
    step(other)
    other.load_state_dict([state])

    assert all(map(torch.equal, before, bits(other)))
    assert {float(value) for value in state["optimizer"]["step"].values()} == {1.0}


def test_a_fresh_state_clears_the_moments_that_were_there():
    one, fresh = engine(), engine()
    state = fresh.state_dict()
    step(one, scale=100.0)
    one.load_state_dict([state])

    assert step(one) == step(fresh)

    assert all(map(torch.equal, bits(one), bits(fresh)))


def test_a_tensor_that_never_had_a_gradient_can_be_restored():
    one, other = engine(), engine(seed=2)
    for single in (one, other):
        single.module.register_parameter("unused", torch.nn.Parameter(torch.randn(3)))
    step(one)

    other.load_state_dict([one.state_dict()])

    assert all(map(torch.equal, bits(one), bits(other)))


def test_a_state_of_another_model_is_refused_by_name():
    one = engine()
    state = one.state_dict()
    state["weights"]["extra"] = torch.zeros(1)

    with pytest.raises(ValueError, match=r"critic's weights differ in name: \['extra'\]"):
        one.load_state_dict([state])


def test_offloading_and_back_changes_nothing():
    one, twin = engine(), engine()
    for single in (one, twin):
        step(single)
    one.offload()
    one.reload()

    assert step(one) == step(twin)
    assert all(map(torch.equal, bits(one), bits(twin)))


def test_bfloat16_is_the_type_of_the_products_and_not_of_the_weights():
    one = engine(dtype=torch.bfloat16)

    assert one.forward(inputs()).dtype == torch.bfloat16
    assert {tensor.dtype for tensor in bits(one)} == {torch.float32}
    assert math.isfinite(step(one))


def test_weights_are_detached_and_a_tied_tensor_comes_once():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    one = TorchEngine(module, OptimizerSettings(learning_rate=0.1), name="policy", device=CPU)

    named = dict(one.weights())

    assert named.keys() == {"0.weight", "0.bias", "1.bias"}
    assert not any(tensor.requires_grad for tensor in named.values())
