import math

import pytest
import torch

from tests import tiny
from trainers.ppo import policy_loss, value_loss


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def surrogate(ratio, advantage, *, low=0.2, high=0.2, dual=None):
    """One action's loss, from the two papers: the negative of what is maximized."""
    gain = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        gain = max(gain, dual * advantage)
    return -gain


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.4),  # enough was gained: 1.2 * 2
        (0.5, 2.0, -1.0),  # a loss is felt in full
        (1.5, -2.0, 3.0),
        (0.5, -2.0, 1.6),  # 0.8 * 2
        (1.5, 0.0, 0.0),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, loss):
    got = policy_loss(row(math.log(ratio)), row(0.0), row(advantage))
    assert float(got) == pytest.approx(loss)


@pytest.mark.parametrize("dual", [None, 1.5, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.05, 1.5)])
def test_policy_loss_equals_the_definition(low, high, dual):
    now, then, advantages = tiny.noise((3, 8, 20), 1).double()

    got = policy_loss(now, then, advantages, clip_low=low, clip_high=high, clip_dual=dual)

    pairs = zip((now - then).flatten().tolist(), advantages.flatten().tolist(), strict=True)
    expected = [surrogate(math.exp(d), a, low=low, high=high, dual=dual) for d, a in pairs]
    torch.testing.assert_close(got.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_the_dual_clip_bounds_what_turned_out_badly_and_leaves_the_rest():
    ratios, advantages = row(10.0, 10.0, 2.0).log(), row(-1.0, 1.0, -1.0)

    plain = policy_loss(ratios, row(0, 0, 0), advantages)
    dual = policy_loss(ratios, row(0, 0, 0), advantages, clip_dual=3.0)

    torch.testing.assert_close(plain, row(10.0, -1.2, 2.0))
    torch.testing.assert_close(dual, row(3.0, -1.2, 2.0))


def test_the_gradient_on_policy_is_the_policy_gradient():
    now = row(-1.0, -2.0, -3.0).requires_grad_()
    advantages = row(1.0, -2.0, 0.5)

    policy_loss(now, now.detach(), advantages).sum().backward()

    torch.testing.assert_close(now.grad, -advantages)


def test_a_clipped_action_has_no_gradient():
    now = row(1.5, 0.5, 1.5, 0.5).log().requires_grad_()
    policy_loss(now, row(0, 0, 0, 0), row(1.0, -1.0, -1.0, 1.0)).sum().backward()

    torch.testing.assert_close(now.grad, row(0.0, 0.0, 1.5, -0.5))


@pytest.mark.parametrize("gap", [1e3, -1e3])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("dual", [None, 3.0])
def test_a_huge_log_ratio_keeps_loss_and_gradient_finite(gap, advantage, dual):
    now = torch.tensor([[gap]], requires_grad=True)

    loss = policy_loss(now, torch.zeros(1, 1), torch.full((1, 1), advantage), clip_dual=dual)
    loss.sum().backward()

    assert loss.isfinite().all()
    assert now.grad.isfinite().all()


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "loss"),
    [
        (1.0, 0.0, 3.0, None, 2.0),
        (1.0, 0.0, 3.0, 0.2, 0.5 * 2.8**2),  # moved 1.0, paid for 0.2
        (0.1, 0.0, 3.0, 0.2, 0.5 * 2.9**2),  # within the clip
        (-1.0, 0.0, 3.0, 0.2, 8.0),  # the wrong way is felt in full
        (3.0, 3.0, 3.0, 0.2, 0.0),
    ],
)
def test_value_loss_by_hand(value, old, target, clip, loss):
    got = value_loss(row(value), row(old), row(target), value_clip=clip)
    assert float(got) == pytest.approx(loss)


@pytest.mark.parametrize("clip", [None, 0.05, 0.5])
def test_value_loss_equals_the_definition(clip):
    values, old, returns = tiny.noise((3, 8, 20), 2).double()

    got = value_loss(values, old, returns, value_clip=clip)

    expected = []
    for v, o, r in torch.stack([values, old, returns], -1).flatten(0, 1).tolist():
        near = v if clip is None else min(max(v, o - clip), o + clip)
        expected.append(0.5 * max((v - r) ** 2, (near - r) ** 2))
    torch.testing.assert_close(got.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_a_value_that_moved_too_far_in_the_right_direction_has_no_gradient():
    values = row(1.0, -1.0, 0.1).requires_grad_()
    value_loss(values, row(0, 0, 0), row(3.0, 3.0, 3.0), value_clip=0.2).sum().backward()

    torch.testing.assert_close(values.grad, row(0.0, -4.0, -2.9))
