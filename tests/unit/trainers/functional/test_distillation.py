"""What a teacher makes of a student's tokens, against enumeration over a tiny vocabulary."""

import math
from functools import partial

import pytest
import torch

from trainers.functional.distillation import (
    Against,
    clipped,
    compare,
    direct_figures,
    every_logprob,
    fitted,
    jensen_shannon,
    kl_divergence,
    linear_figures,
)

VOCAB, STATES = 7, 5


def distributions(seed, *, scale=2.0, states=STATES):
    """Log-probabilities [N, V] in float64."""
    rng = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(states, VOCAB, generator=rng, dtype=torch.float64)).log_softmax(-1)


def slow_kl(first, second):
    """KL of two lists of probabilities, from the definition."""
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True) if p > 0)


def slow_jsd(student, teacher, beta):
    """The generalized Jensen-Shannon divergence of Agarwal et al., from the definition."""
    mixture = [beta * t + (1 - beta) * s for s, t in zip(student, teacher, strict=True)]
    return beta * slow_kl(teacher, mixture) + (1 - beta) * slow_kl(student, mixture)


def every_token(student, teacher, clip):
    """The rewards [N, V] of all tokens and their mean [N], as `compare` has them."""
    rows = torch.arange(VOCAB).expand(STATES, -1)
    made = [compare(student, teacher, rows[:, token], clip=clip) for token in range(VOCAB)]
    rewards = torch.stack([clipped(one[:, 1] - one[:, 0], clip) for one in made], dim=1)
    return rewards, made[0][:, 2]


@pytest.mark.parametrize("clip", [None, 10.0, 0.5])
def test_the_mean_of_the_reward_is_exact_and_the_advantage_has_mean_zero_in_every_state(clip):
    student, teacher = distributions(0), distributions(1)
    rewards, mean = every_token(student, teacher, clip)
    for state in range(STATES):
        shares = student[state].exp().tolist()
        expected = 0.0
        for token, share in enumerate(shares):
            ratio = float(teacher[state, token] - student[state, token])
            bound = math.inf if clip is None else clip
            expected += share * min(max(ratio, -bound), bound)
        assert float(mean[state]) == pytest.approx(expected, abs=1e-12)
    advantages = (student.exp() * (rewards - mean[:, None])).sum(1)
    assert advantages.abs().max() < 1e-12
    assert (clip == 0.5) == bool((rewards.abs() == 0.5).any())


def test_without_a_clip_the_mean_is_the_negative_kl_to_the_teacher():
    student, teacher = distributions(0), distributions(1)
    figures = compare(student, teacher, torch.zeros(STATES, dtype=torch.long), clip=None)
    for state in range(STATES):
        both = student[state].exp().tolist(), teacher[state].exp().tolist()
        assert float(figures[state, 3]) == pytest.approx(slow_kl(*both), abs=1e-12)
        assert float(figures[state, 4]) == pytest.approx(slow_kl(*both[::-1]), abs=1e-12)
    torch.testing.assert_close(figures[:, 2], -figures[:, 3])


def test_a_student_that_is_its_teacher_is_paid_nothing():
    student = distributions(0)
    rewards, mean = every_token(student, student, None)
    assert float(rewards.abs().max()) == float(mean.abs().max()) == 0.0


def test_the_expected_policy_gradient_is_that_of_the_reverse_kl():
    logits = torch.randn(STATES, VOCAB, dtype=torch.float64, requires_grad=True)
    teacher = distributions(1)
    student = logits.log_softmax(-1)
    rewards, mean = every_token(student.detach(), teacher, None)
    surrogate = (student.detach().exp() * (rewards - mean[:, None]) * student).sum()
    (policy_gradient,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    (of_kl,) = torch.autograd.grad(kl_divergence(student, teacher).sum(), logits)
    torch.testing.assert_close(policy_gradient, -of_kl)


def test_the_mean_lowers_the_variance_of_the_policy_gradient():
    student, teacher = distributions(0, scale=0.3), distributions(1)
    rewards, mean = every_token(student, teacher, None)
    shares = student.exp()
    scores = torch.eye(VOCAB, dtype=torch.float64) - shares[:, None, :]  # d log pi(a) / d logits
    norms = (shares[:, :, None] * scores**2).sum(-1)
    with_mean = (norms * (rewards - mean[:, None]) ** 2).sum()
    assert float(with_mean) < 0.8 * float((norms * rewards**2).sum())


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_the_divergence_of_gkd_is_its_definition(beta):
    student, teacher = distributions(2), distributions(3)
    expected = [
        slow_jsd(one.exp().tolist(), two.exp().tolist(), beta)
        for one, two in zip(student, teacher, strict=True)
    ]
    assert jensen_shannon(student, teacher, beta).tolist() == pytest.approx(expected, abs=1e-12)


def test_its_ends_are_the_two_kl_and_the_limits_of_what_lies_between():
    student, teacher = distributions(2), distributions(3)
    forward, reverse = kl_divergence(teacher, student), kl_divergence(student, teacher)
    torch.testing.assert_close(jensen_shannon(student, teacher, 0.0), forward)
    torch.testing.assert_close(jensen_shannon(student, teacher, 1.0), reverse)
    near = 1e-6
    low, high = (jensen_shannon(student, teacher, beta) / near for beta in (near, 1 - near))
    torch.testing.assert_close(low, forward, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(high, reverse, rtol=1e-4, atol=1e-6)
    assert float((forward - reverse).abs().min()) > 1e-2, "they differ, so the ends are told apart"


def test_half_is_symmetric_and_bounded_by_the_logarithm_of_two():
    student, teacher = distributions(2, scale=9.0), distributions(3, scale=9.0)
    made = jensen_shannon(student, teacher, 0.5)
    torch.testing.assert_close(made, jensen_shannon(teacher, student, 0.5))
    assert float(made.max()) <= math.log(2)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_only_the_divergence_has_a_gradient_and_ids_that_neither_writes_add_nothing(beta):
    logits = torch.randn(STATES, VOCAB, requires_grad=True)
    hidden = torch.tensor([False] * 5 + [True] * 2)
    student = logits.masked_fill(hidden, -math.inf).log_softmax(-1)
    teacher = distributions(4).float().masked_fill(hidden, -math.inf).log_softmax(-1)
    tokens = torch.zeros(STATES, dtype=torch.long)
    figures = direct_figures(student, teacher, tokens, beta=beta)
    assert figures.isfinite().all()
    kept = direct_figures(student[:, :5], teacher[:, :5], tokens, beta=beta)
    torch.testing.assert_close(figures, kept)
    (gradient,) = torch.autograd.grad(figures[:, 0].sum(), logits, retain_graph=True)
    assert gradient.isfinite().all()
    assert float(gradient[:, :5].abs().max()) > 1e-3
    assert float(gradient[:, 5:].abs().max()) == 0.0
    (whole,) = torch.autograd.grad(figures.sum(), logits)
    torch.testing.assert_close(whole, gradient)
    compared = compare(student.detach(), teacher, tokens, clip=None)
    assert compared.isfinite().all()


def test_chunks_change_neither_figures_nor_gradients():
    rng = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=rng) for shape in ((11, 6), (VOCAB, 6), (VOCAB,))
    )
    teacher = distributions(5, states=11).float()
    tokens = torch.randint(VOCAB, (11,), generator=rng)
    results = []
    for chunk in (100, 3):
        states, head = (tensor.clone().requires_grad_() for tensor in (hidden, weight))
        against = Against(logprobs=teacher, figures=partial(direct_figures, beta=0.3))
        figures = linear_figures(states, head, bias, tokens, against, temperature=0.7, chunk=chunk)
        figures[:, 0].sum().backward()
        results.append((figures.detach(), states.grad, head.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    every = every_logprob(hidden, weight, bias, temperature=0.7, chunk=3)
    expected = ((hidden @ weight.T + bias) / 0.7).log_softmax(-1)
    torch.testing.assert_close(every, expected)
    by_hand = jensen_shannon(expected, teacher, 0.3)
    torch.testing.assert_close(results[0][0][:, 0], by_hand)


def test_a_vocabulary_that_is_padded_otherwise_is_cut_or_filled_with_what_is_never_written():
    logprobs = distributions(0)
    torch.testing.assert_close(fitted(logprobs, 5), logprobs[:, :5])
    wider = fitted(logprobs, 9)
    torch.testing.assert_close(wider[:, :VOCAB], logprobs)
    assert (wider[:, VOCAB:] == -math.inf).all()
