import pytest
import torch

from trainers.config.ppo import PPOConfig
from trainers.functional.kl import MAX_LOG_RATIO, KLController, kl_estimate, ratio_of

F64 = torch.float64
ESTIMATORS = ("k1", "k2", "k3", "k3_straight_through")


def distributions(seed=0, *, size=12, spread=1.0):
    """Log-probabilities of a policy and a reference over a vocabulary that can be enumerated."""
    rng = torch.Generator().manual_seed(seed)
    policy, reference = spread * torch.randn(2, size, generator=rng, dtype=F64)
    return policy, reference.log_softmax(-1)


def divergence(logits, reference):
    """KL(policy || reference) from the definition."""
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - reference)).sum()


def expected_estimate(logits, reference, estimator):
    """The mean of an estimator over all actions of the policy."""
    logp = logits.log_softmax(-1)
    estimates = kl_estimate(logp.unsqueeze(0), reference.unsqueeze(0), estimator)[0]
    return (logp.exp().detach() * estimates).sum()


def gradient(figure, logits):
    return torch.autograd.grad(figure, logits)[0]


@pytest.mark.parametrize("estimator", ["k1", "k3", "k3_straight_through"])
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_of_k1_and_of_k3_is_the_divergence(estimator, seed):
    logits, reference = distributions(seed)

    mean = expected_estimate(logits, reference, estimator)

    torch.testing.assert_close(mean, divergence(logits, reference))


def test_k3_is_never_negative_and_k1_and_its_batch_mean_may_be():
    logits, reference = distributions(1)
    logp = logits.log_softmax(-1).unsqueeze(0)

    assert (kl_estimate(logp, reference.unsqueeze(0), "k3") >= 0).all()
    k1 = kl_estimate(logp, reference.unsqueeze(0), "k1")
    assert k1.min() < 0
    unlucky = k1[k1 < k1.median()]
    assert unlucky.mean() < 0


@pytest.mark.parametrize("estimator", ["k2", "k3_straight_through"])
@pytest.mark.parametrize("seed", range(4))
def test_on_policy_the_gradient_of_k2_and_straight_through_is_the_divergence_s(estimator, seed):
    logits, reference = distributions(seed)
    logits.requires_grad_()

    ours = gradient(expected_estimate(logits, reference, estimator), logits)

    torch.testing.assert_close(ours, gradient(divergence(logits, reference), logits))


def test_the_gradient_of_k3_is_biased_and_that_of_k1_has_mean_zero():
    logits, reference = distributions(2)
    logits.requires_grad_()
    exact = gradient(divergence(logits, reference), logits)

    k3 = gradient(expected_estimate(logits, reference, "k3"), logits)
    k1 = gradient(expected_estimate(logits, reference, "k1"), logits)

    assert (k3 - exact).norm() > 0.1 * exact.norm()
    torch.testing.assert_close(k1, torch.zeros_like(k1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_model_is_no_distance_from_itself(estimator):
    logp = torch.randn(3, 4)
    assert torch.equal(kl_estimate(logp, logp.clone(), estimator), torch.zeros(3, 4))


def test_estimators_by_hand():
    policy, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -1.5]])
    for estimator, expected in {
        "k1": [1.0, -0.5],
        "k2": [0.5, 0.125],
        "k3": [0.36787944, 0.14872127],
        "k3_straight_through": [0.36787944, 0.14872127],
    }.items():
        got = kl_estimate(policy, reference, estimator)
        torch.testing.assert_close(got, torch.tensor([expected]), rtol=1e-6, atol=0)


def test_straight_through_has_the_value_of_k3_bit_for_bit():
    policy, reference = torch.linspace(-30, 0, 50)[None], torch.linspace(-5, -20, 50)[None]
    values = [kl_estimate(policy, reference, name) for name in ("k3", "k3_straight_through")]
    assert torch.equal(*values)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_gradient_reaches_the_reference(estimator):
    policy, reference = (noise.requires_grad_() for noise in torch.randn(2, 2, 3).unbind())

    kl_estimate(policy, reference, estimator).sum().backward()

    assert policy.grad is not None
    assert reference.grad is None


@pytest.mark.parametrize("gap", [1e3, -1e3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_huge_log_ratio_keeps_estimates_and_gradients_finite(estimator, gap):
    policy = torch.tensor([[gap]], requires_grad=True)

    estimate = kl_estimate(policy, torch.zeros(1, 1), estimator)
    estimate.sum().backward()

    assert estimate.isfinite().all()
    assert policy.grad.isfinite().all()


@pytest.mark.parametrize("gap", [1e3, -1e3, MAX_LOG_RATIO])
def test_a_huge_log_ratio_keeps_the_ratio_and_its_gradient_finite(gap):
    now = torch.tensor([[gap]], requires_grad=True)

    ratio = ratio_of(now, torch.zeros(1, 1))
    (ratio * 0.0).sum().backward()

    assert ratio.isfinite().all()
    assert now.grad.tolist() == [[0.0]]


def test_the_ratio_is_the_quotient_of_the_probabilities():
    now, then = torch.tensor([[0.3, 0.05]]), torch.tensor([[0.2, 0.5]])
    torch.testing.assert_close(ratio_of(now.log(), then.log()), torch.tensor([[1.5, 0.1]]))


def test_an_unknown_estimator_is_an_error():
    with pytest.raises(KeyError):
        kl_estimate(torch.zeros(1, 1), torch.ones(1, 1), "k4")


def controller(**changes):
    return KLController(PPOConfig(kl_controller="adaptive", **changes))


def test_the_controller_follows_its_closed_form_in_nats_an_episode():
    steering = controller(kl_coef=0.1, kl_target=6.0, kl_horizon=1000.0)
    steering.update(6.6, num_episodes=50)

    assert steering.coef == pytest.approx(0.1 * (1 + 0.1 * 50 / 1000))


@pytest.mark.parametrize(("kl", "error"), [(60.0, 0.2), (0.0, -0.2), (-5.0, -0.2), (6.0, 0.0)])
def test_the_controller_s_error_is_clipped(kl, error):
    steering = controller(kl_coef=0.1, kl_target=6.0, kl_horizon=1000.0)
    steering.update(kl, num_episodes=100)

    assert steering.coef == pytest.approx(0.1 * (1 + error * 100 / 1000))


def test_a_kl_held_above_the_target_raises_the_coefficient_geometrically():
    steering = controller(kl_coef=0.05, kl_target=6.0, kl_horizon=10000.0)
    for _ in range(40):
        steering.update(12.0, num_episodes=256)

    assert steering.coef == pytest.approx(0.05 * (1 + 0.2 * 256 / 10000) ** 40)


def test_a_fixed_controller_stays():
    steering = KLController(PPOConfig(kl_coef=0.07))
    steering.update(1000.0, num_episodes=256)

    assert steering.coef == 0.07


def test_a_controller_that_was_saved_goes_on_where_it_was():
    one, other = controller(), controller()
    for kl in (3.0, 9.0):
        one.update(kl, num_episodes=64)
    other.load_state_dict(one.state_dict())
    saved = one.state_dict()["coef"]
    for steering in (one, other):
        steering.update(7.0, num_episodes=64)

    assert one.coef == other.coef != saved


@pytest.mark.parametrize("placement", ["loss", "none"])
def test_the_reward_s_coefficient_is_zero_under_another_placement(placement):
    assert KLController(PPOConfig(kl_placement=placement)).coef == 0.0
