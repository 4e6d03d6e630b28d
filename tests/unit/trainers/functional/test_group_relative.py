"""Group-relative advantages against their definitions, one loop at a time."""

import itertools
import statistics

import pytest
import torch

from trainers.functional.advantages import STD_EPSILON, group_relative

F64 = torch.float64
KINDS = [("rloo", False), ("rloo", True), ("grpo", False), ("grpo", True)]


def oracle(scores, groups, counted, kind, scale):
    """Each episode beside the others of its group, by the definition."""
    advantages = []
    for number, (score, group) in enumerate(zip(scores, groups, strict=True)):
        members = [i for i, other in enumerate(groups) if other == group and counted[i]]
        if not counted[number] or len(members) < 2:
            advantages.append(0.0)
            continue
        everyone = [scores[i] for i in members]
        others = [scores[i] for i in members if i != number]
        advantage = score - statistics.fmean(others if kind == "rloo" else everyone)
        divisor = statistics.stdev(everyone) + STD_EPSILON if scale else 1.0
        advantages.append(advantage / divisor)
    return torch.tensor(advantages, dtype=F64)


def of(scores, groups, counted=None, *, kind, scale):
    """The same by the function."""
    counted = [True] * len(scores) if counted is None else counted
    return group_relative(
        torch.tensor(scores, dtype=F64),
        torch.tensor(groups),
        torch.tensor(counted),
        leave_one_out=kind == "rloo",
        scale=scale,
    )


@pytest.mark.parametrize(("kind", "scale"), KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_definition(kind, scale, seed):
    rng = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 5, (23,), generator=rng).tolist()  # of any size, in any order
    scores = torch.randn(23, generator=rng, dtype=F64).tolist()
    counted = (torch.rand(23, generator=rng) < 0.8).tolist()

    advantages = of(scores, groups, counted, kind=kind, scale=scale)

    torch.testing.assert_close(
        advantages, oracle(scores, groups, counted, kind, scale), rtol=1e-12, atol=1e-12
    )


def test_leave_one_out_is_the_group_mean_times_n_over_n_minus_one():
    scores, groups = [1.0, 0.0, 0.0, 5.0], [7, 7, 7, 7]
    rloo, grpo = (of(scores, groups, kind=kind, scale=False) for kind in ("rloo", "grpo"))

    torch.testing.assert_close(rloo, 4 / 3 * grpo)
    assert rloo.tolist() == pytest.approx([1 - 5 / 3, -2.0, -2.0, 5 - 1 / 3])


@pytest.mark.parametrize(("kind", "scale"), KINDS)
def test_equal_scores_and_a_group_of_one_earn_nothing(kind, scale):
    equal = of([0.3, 0.3, 0.3, 9.0], [1, 1, 1, 2], kind=kind, scale=scale)
    assert equal.tolist() == pytest.approx([0.0] * 4, abs=1e-11)  # of sums, up to rounding
    assert not of([1.0, 3.0], [1, 1], [True, False], kind=kind, scale=scale).any()


@pytest.mark.parametrize(("kind", "scale"), KINDS)
def test_what_all_of_a_group_earn_changes_nothing(kind, scale):
    scores, groups = [1.0, 0.0, 2.0, 4.0, 8.0], [0, 0, 1, 1, 1]
    shifted = [score + 100 * group for score, group in zip(scores, groups, strict=True)]

    torch.testing.assert_close(
        of(scores, groups, kind=kind, scale=scale), of(shifted, groups, kind=kind, scale=scale)
    )


def test_divided_advantages_do_not_depend_on_the_size_of_the_rewards():
    scores, groups = [1.0, 0.0, 2.0, 4.0], [0] * 4
    small = of(scores, groups, kind="grpo", scale=True)
    large = of([1e4 * score for score in scores], groups, kind="grpo", scale=True)

    torch.testing.assert_close(small, large, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(("kind", "factor"), [("rloo", 1.0), ("grpo", 2 / 3)])
def test_the_expected_gradient_is_that_of_the_expected_reward(kind, factor):
    """Over every draw of a group of three: exact for rloo, shortened by (n - 1) / n for grpo."""
    logits = torch.tensor([0.3, -0.5, 0.1], dtype=F64, requires_grad=True)
    reward = torch.tensor([2.0, -1.0, 0.5], dtype=F64)
    (expected,) = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)

    estimate = torch.zeros(3, dtype=F64)
    for draw in itertools.product(range(3), repeat=3):
        actions = torch.tensor(draw)
        logprobs = logits.log_softmax(0)[actions]
        advantages = of(reward[actions].tolist(), [0, 0, 0], kind=kind, scale=False)
        (gradient,) = torch.autograd.grad((advantages * logprobs).mean(), logits)
        estimate += logprobs.sum().exp().detach() * gradient

    torch.testing.assert_close(estimate, factor * expected)
