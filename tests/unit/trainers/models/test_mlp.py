import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch.distributions import Categorical, Independent, Normal

from trainers.batch import ControlInputs
from trainers.errors import ConfigError
from trainers.models.mlp import PolicyMLP, SharedMLP, ValueMLP, build_control

SIZES = [16, 8]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def policy_of(space, kind=PolicyMLP):
    policy = kind(3, space, hidden_sizes=SIZES, rng=seeded())
    with torch.no_grad():  # away from the almost uniform start
        for parameter in policy.head.parameters():
            parameter.normal_(generator=seeded(1))
    return policy


def steps(actions):
    obs = torch.randn(4, 5, 3, generator=seeded(2))
    return ControlInputs(obs=obs, actions=actions), torch.ones(4, 5, dtype=torch.bool)


@pytest.mark.parametrize("kind", [PolicyMLP, SharedMLP])
@pytest.mark.parametrize("start", [0, 3])
def test_a_discrete_policy_is_the_categorical_of_its_logits(kind, start):
    policy = policy_of(Discrete(4, start=start), kind)
    index = torch.randint(0, 4, (4, 5), generator=seeded(3))
    inputs, mask = steps(index + start)

    output = policy(inputs, mask, entropy="loss")

    theirs = Categorical(logits=policy.head.logits(policy.trunk(inputs.obs)))
    torch.testing.assert_close(output.logprobs, theirs.log_prob(index))
    torch.testing.assert_close(output.entropy, theirs.entropy())


@pytest.mark.parametrize("shape", [(2,), (), (2, 2)])
def test_a_continuous_policy_is_the_diagonal_gaussian(shape):
    policy = policy_of(Box(-1, 1, shape))
    inputs, mask = steps(torch.randn(4, 5, *shape, generator=seeded(3)))

    output = policy(inputs, mask, entropy="loss")

    mean = policy.head.mean(policy.trunk(inputs.obs))
    theirs = Independent(Normal(mean, policy.head.log_std.exp().expand_as(mean)), 1)
    actions = inputs.actions.reshape(mean.shape)
    torch.testing.assert_close(output.logprobs, theirs.log_prob(actions))
    torch.testing.assert_close(output.entropy, theirs.entropy())


def test_masked_steps_and_unwanted_entropy_are_absent():
    policy = policy_of(Discrete(4))
    inputs, mask = steps(torch.zeros(4, 5, dtype=torch.long))
    mask[1, 2] = False
    assert policy(inputs, mask).logprobs[1, 2] == 0
    assert policy(inputs, mask).entropy is None
    assert not policy(inputs, mask, entropy="metric").entropy.requires_grad
    assert policy(inputs, mask, entropy="loss").entropy.requires_grad


@pytest.mark.parametrize("kind", [PolicyMLP, SharedMLP])
def test_discrete_draws_follow_the_probabilities(kind):
    policy = policy_of(Discrete(4, start=1), kind)
    obs = torch.randn(1, 3, generator=seeded(5))
    count = 20_000
    uniforms = (torch.arange(count, dtype=torch.float64).unsqueeze(1) + 0.5) / count

    actions = policy.acting()(obs.expand(count, 3), uniforms)

    probabilities = policy.head.logits(policy.trunk(obs))[0].softmax(-1)
    frequencies = torch.bincount(actions - 1, minlength=4) / count
    torch.testing.assert_close(frequencies, probabilities, atol=2 / count, rtol=0)


def test_an_impossible_action_is_never_drawn_not_even_at_the_ends():
    policy = policy_of(Discrete(3))
    with torch.no_grad():
        policy.head.logits.weight.zero_()
        policy.head.logits.bias.copy_(torch.tensor([-torch.inf, 0.0, -torch.inf]))
    uniforms = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    assert policy.acting()(torch.zeros(3, 3), uniforms).tolist() == [1, 1, 1]


def test_continuous_draws_follow_the_gaussian_and_stay_finite_at_the_ends():
    policy = policy_of(Box(-1, 1, (2,)))
    obs = torch.randn(1, 3, generator=seeded(5))
    count = 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    uniforms = torch.stack([grid, grid[torch.randperm(count, generator=seeded(6))]], dim=1)

    actions = policy.acting()(obs.expand(count, 3), uniforms)

    mean = policy.mode(obs)[0]
    torch.testing.assert_close(actions.mean(0), mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(actions.std(0), policy.head.log_std.exp(), atol=2e-3, rtol=1e-3)
    assert actions.abs().max() > 1.0  # not clipped to the space
    ends = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert torch.isfinite(policy.acting()(obs, ends)).all()


def test_a_draw_depends_on_its_own_uniform_alone():
    policy = policy_of(Discrete(4))
    obs, uniforms = torch.randn(6, 3, generator=seeded(7)), torch.rand(6, 1, generator=seeded(8))
    together = policy.acting()(obs, uniforms)
    alone = [int(policy.acting()(obs[i : i + 1], uniforms[i : i + 1])) for i in range(6)]
    assert together.tolist() == alone


@pytest.mark.parametrize("space", [Discrete(4, start=2), Box(-1, 1, (2,)), Box(-9, 9, ())])
def test_actions_have_the_shape_of_the_space(space):
    policy = policy_of(space)
    obs = torch.zeros(6, 3)
    uniforms = torch.full((6, policy.head.num_uniforms), 0.5)
    for action in (*policy.acting()(obs, uniforms).numpy(), *policy.mode(obs).numpy()):
        assert action.shape == space.shape
        assert space.contains(np.asarray(action, space.dtype))


def test_weights_start_orthogonal_with_the_usual_gains():
    policy = PolicyMLP(3, Discrete(4), hidden_sizes=SIZES, rng=seeded())
    value = ValueMLP(3, hidden_sizes=SIZES, rng=seeded())
    for layer, gain in (
        (policy.trunk[0], math.sqrt(2)),
        (policy.trunk[2], math.sqrt(2)),
        (policy.head.logits, 0.01),
        (value.value, 1.0),
    ):
        singular = torch.linalg.svdvals(layer.weight)
        torch.testing.assert_close(singular, torch.full_like(singular, gain))
        assert layer.bias.eq(0).all()


def test_the_seed_decides_the_weights_and_no_global_generator_moves():
    before = torch.random.get_rng_state()
    one, other, third = (
        build_control(Box(-1, 1, (3,)), Discrete(2), hidden_sizes=SIZES, seed=s, critic="shared")[0]
        for s in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.trunk[0].weight, other.trunk[0].weight)
    assert not torch.equal(one.trunk[0].weight, third.trunk[0].weight)


def test_values_have_one_figure_a_step_whatever_the_shape_of_observations():
    policy, value = build_control(
        Box(-1, 1, (2, 3)), Discrete(2), hidden_sizes=[], seed=0, critic="separate"
    )
    inputs = ControlInputs(obs=torch.zeros(4, 5, 2, 3), actions=torch.zeros(4, 5))
    assert value(inputs).shape == (4, 5)
    assert policy(inputs, torch.ones(4, 5, dtype=torch.bool)).logprobs.shape == (4, 5)
    shared, none = build_control(
        Box(-1, 1, (2, 3)), Discrete(2), hidden_sizes=[4], seed=0, critic="shared"
    )
    assert none is None
    assert shared(inputs, torch.ones(4, 5, dtype=torch.bool)).values.shape == (4, 5)


def test_spaces_that_are_not_supported_are_named():
    with pytest.raises(ConfigError, match=r"acts in Discrete and Box spaces.*MultiDiscrete"):
        policy_of(MultiDiscrete([2, 2]))
    with pytest.raises(ConfigError, match=r"reads observations from a Box.*Discrete\(5\)"):
        build_control(Discrete(5), Discrete(2), hidden_sizes=SIZES, seed=0, critic="separate")


@pytest.mark.parametrize("kind", [PolicyMLP, SharedMLP])
@pytest.mark.parametrize("space", [Discrete(4, start=2), Box(-1, 1, (2,)), Box(-1, 1, ())])
def test_acting_draws_what_the_modules_would_and_follows_the_weights(kind, space):
    policy = policy_of(space, kind)
    act = policy.acting()
    obs = torch.randn(6, 3, generator=seeded(7))
    uniforms = torch.rand(6, policy.head.num_uniforms, generator=seeded(8), dtype=torch.float64)
    before = act(obs, uniforms)
    for _ in range(2):
        with torch.no_grad():
            outputs = policy.head.layer(policy.trunk(obs))
            expected = policy.head.draw(outputs, uniforms)
        assert torch.equal(act(obs, uniforms), expected)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.5)
    assert not torch.equal(act(obs, uniforms), before)


def limited_steps(policy, *, seed=3):
    """Steps with random masks and priors, their actions drawn under both."""
    count = policy.head.logits.out_features
    obs = torch.randn(4, 5, 3, generator=seeded(2))
    mask = torch.rand(4, 5, count, generator=seeded(seed)) < 0.5
    mask[..., 1] = True
    prior = torch.randn(4, 5, count, generator=seeded(seed + 1))
    uniforms = torch.rand(20, 1, generator=seeded(seed + 2), dtype=torch.float64)
    flat = (obs.flatten(0, 1), uniforms, mask.flatten(0, 1), prior.flatten(0, 1))
    actions = policy.acting()(*flat).reshape(4, 5)
    return ControlInputs(obs=obs, actions=actions, action_mask=mask, action_prior=prior)


@pytest.mark.parametrize("kind", [PolicyMLP, SharedMLP])
def test_a_masked_policy_is_the_categorical_of_the_allowed_logits_alone(kind):
    policy = policy_of(Discrete(4, start=2), kind)
    inputs = limited_steps(policy)
    output = policy(inputs, torch.ones(4, 5, dtype=torch.bool), entropy="loss")
    logits = policy.head.logits(policy.trunk(inputs.obs)) + inputs.action_prior
    for row in range(4):
        for step in range(5):
            allowed = inputs.action_mask[row, step].nonzero().flatten()
            theirs = Categorical(logits=logits[row, step, allowed])
            action = int(inputs.actions[row, step]) - 2
            assert action in allowed.tolist()
            position = allowed.tolist().index(action)
            expected = theirs.log_prob(torch.tensor(position))
            torch.testing.assert_close(output.logprobs[row, step], expected)
            torch.testing.assert_close(output.entropy[row, step], theirs.entropy())


def test_gradients_through_a_mask_are_finite_and_leave_other_logits_alone():
    policy = policy_of(Discrete(4))
    inputs = limited_steps(policy)
    inputs.action_mask[..., 3], inputs.action_mask[..., 1] = False, True
    inputs.actions.fill_(1)
    output = policy(inputs, torch.ones(4, 5, dtype=torch.bool), entropy="loss")
    (output.logprobs.sum() + output.entropy.sum()).backward()
    for parameter in policy.parameters():
        assert torch.isfinite(parameter.grad).all()
    assert policy.head.logits.bias.grad[3] == 0
    assert policy.head.logits.bias.grad[1] != 0


def test_one_allowed_action_is_certain_and_has_no_entropy():
    policy = policy_of(Discrete(4))
    inputs = limited_steps(policy)
    inputs.action_mask[:] = False
    inputs.action_mask[..., 2] = True
    inputs.actions.fill_(2)
    output = policy(inputs, torch.ones(4, 5, dtype=torch.bool), entropy="loss")
    assert output.logprobs.abs().max() == 0
    assert output.entropy.abs().max() == 0


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_only_allowed_actions_are_drawn_and_are_the_mode(uniform):
    policy = policy_of(Discrete(5))
    mask = torch.tensor([[False, True, False, True, False]]).expand(3, 5)
    obs = torch.randn(3, 3, generator=seeded(7))
    uniforms = torch.full((3, 1), uniform, dtype=torch.float64)
    for actions in (policy.acting()(obs, uniforms, mask), policy.mode(obs, mask)):
        assert set(actions.tolist()) <= {1, 3}
    prior = torch.zeros(3, 5)
    prior[:, 4] = 1e6
    assert policy.mode(obs, None, prior).tolist() == [4, 4, 4]
    assert set(policy.mode(obs, mask, prior).tolist()) <= {1, 3}


def test_rows_copies_and_blanks_take_masks_along():
    inputs = limited_steps(policy_of(Discrete(4)))
    flat = inputs.flat()
    assert flat.action_mask.shape == flat.action_prior.shape == (20, 1, 4)
    assert torch.equal(flat.action_mask[7, 0], inputs.action_mask[1, 2])
    assert torch.equal(inputs.rows(slice(1, 3)).action_prior, inputs.action_prior[1:3])
    assert not inputs.blank().action_mask.any()
    plain = ControlInputs(obs=inputs.obs, actions=inputs.actions)
    assert plain.rows(slice(1, 3)).action_mask is None
    assert inputs.to(torch.device("cpu")).action_mask.dtype == torch.bool
