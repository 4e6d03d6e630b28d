import itertools
import math

import pytest
import torch

from tests import tiny
from trainers.batch import ControlInputs
from trainers.errors import NonFiniteError
from trainers.functional.row_groups import packed_groups, padded_groups, row_groups
from trainers.learner import FrozenPolicy, evaluated
from trainers.models.causal_lm import CausalPolicy
from trainers.ppo import describe, learn, make_experience, update

BUDGETS = (1, 7, 11, 20, 33, 1000)
SIZES = torch.tensor(list(zip(tiny.PROMPTS, tiny.RESPONSES, strict=True)))


def padded_tokens(group):
    """The tokens of a group, each row as wide as the widest prompt and response of them."""
    return len(group) * int(SIZES[group].max(0).values.sum())


@pytest.mark.parametrize("budget", BUDGETS)
def test_packing_puts_every_row_in_one_group(budget):
    assert sorted(torch.cat(padded_groups(SIZES, budget)).tolist()) == [*range(len(SIZES))]


@pytest.mark.parametrize("budget", BUDGETS)
def test_packing_keeps_the_budget_padding_included(budget):
    for group in padded_groups(SIZES, budget):
        assert len(group) == 1 or padded_tokens(group) <= budget


def test_a_budget_for_all_is_one_group_and_no_rows_are_none():
    assert len(padded_groups(SIZES, len(SIZES) * 11)) == 1
    assert padded_groups(SIZES[:0], 100) == []


def test_groups_are_of_like_length():
    sizes = torch.tensor([[1, 9], [1, 1], [1, 9], [1, 1]])
    assert [sorted(group.tolist()) for group in padded_groups(sizes, 20)] == [[0, 2], [1, 3]]


PROMPT_OF = torch.arange(len(SIZES)) % 3
"""Rows in turn answer three prompts, each as long as its first row's."""
SHARED = torch.stack([SIZES[PROMPT_OF, 0], SIZES[:, 1]], dim=1)


def real_tokens(group):
    """The tokens of a group, each prompt once."""
    prompts = {int(PROMPT_OF[row]): int(SHARED[row, 0]) for row in group}
    return sum(prompts.values()) + int(SHARED[group, 1].sum())


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("shape", [(0, 1), (1, 1), (50, 1), (9, 5)])
def test_steps_of_environments_are_grouped_as_rows_of_one_width_are(shape, budget):
    steps = ControlInputs(obs=torch.zeros(*shape, 2), actions=torch.zeros(*shape))
    numbers = torch.arange(shape[0])
    groups = [numbers[group].tolist() for group in row_groups(steps, budget, packed_up_to=math.inf)]
    assert groups == [group.tolist() for group in padded_groups(steps.sizes, budget)]


@pytest.mark.parametrize("budget", BUDGETS)
def test_packed_groups_count_no_padding_and_a_shared_prompt_once(budget):
    groups = packed_groups(SHARED, PROMPT_OF, budget)
    assert sorted(torch.cat(groups).tolist()) == [*range(len(SIZES))]
    assert all(len(group) == 1 or real_tokens(group) <= budget for group in groups)
    for group, after in itertools.pairwise(groups):
        assert real_tokens(torch.cat([group, after[:1]])) > budget


def test_rows_that_share_a_prompt_are_neighbours():
    order = PROMPT_OF[torch.cat(packed_groups(SHARED, PROMPT_OF, 1000))]
    assert len(torch.unique_consecutive(order)) == 3
    assert packed_groups(SHARED[:0], PROMPT_OF[:0], 100) == []


def test_a_row_that_is_too_long_to_be_packed_makes_all_count_their_padding():
    inputs = tiny.text()
    longest = int(inputs.sizes.sum(1).max())
    for limit, expected in (
        (float(longest), packed_groups(inputs.sizes, inputs.prompt_numbers, 20)),
        (longest - 1.0, padded_groups(inputs.sizes, 20)),
    ):
        groups = row_groups(inputs, 20, packed_up_to=limit)
        assert [group.tolist() for group in groups] == [group.tolist() for group in expected]


@pytest.mark.parametrize("packed_up_to", [0.0, math.inf])
@pytest.mark.parametrize("budget", BUDGETS)
def test_figures_come_back_in_row_order_for_any_budget(budget, packed_up_to):
    inputs = tiny.text()

    def first_action(micro, rows):
        assert torch.equal(micro.actions[:, 0], inputs.actions[rows, 0])
        return micro.actions * 1.0

    figures = evaluated(
        inputs, first_action, budget=budget, packed_up_to=packed_up_to, device=tiny.CPU
    )

    real = inputs.attention_mask[:, inputs.num_prompt :]
    assert torch.equal(figures[real], inputs.actions[real] * 1.0)


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("budget", BUDGETS[:-1])
def test_logprobs_and_values_do_not_depend_on_the_budget(critic, budget):
    made = tiny.rollout()
    whole = tiny.learner(tiny.settings(critic=critic))
    split = tiny.learner(tiny.settings(critic=critic, tokens=budget))
    real = torch.nn.functional.pad(made.response_mask, (1, 0), value=True)  # one state more

    for name, arguments, where in (
        ("logprobs", (made.inputs, made.response_mask), made.response_mask),
        ("values", (made.inputs,), real),
    ):
        one, other = (getattr(learner, name)(*arguments) for learner in (whole, split))
        assert one.shape == other.shape == where.shape
        torch.testing.assert_close(one[where], other[where], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_padding_changes_no_figure_and_no_gradient(critic):
    config = tiny.settings(critic=critic, max_grad_norm=None)
    results = []
    for spare in ((0, 0), (4, 3)):
        learner = tiny.learner(config)
        made = tiny.experience(inputs=tiny.text(spare=spare), **columns_with(spare[1]))
        scored = learner.logprobs(made.inputs, made.response_mask)[:, :6]
        values = learner.values(made.inputs)[:, :6]
        made = tiny.on_policy(learner, made).trimmed()
        (micro,) = learner.micro_batches(made)
        logprobs, _, now, _ = learner.forward(micro, entropy="metric", last=True)
        learner.backward((logprobs * micro.advantages).sum(), (now * micro.response_mask).sum())
        results.append((scored, values, tiny.gradients(learner)))
    (logprobs, values, gradients), (others, other_values, other_gradients) = results
    mask = tiny.rollout().response_mask
    torch.testing.assert_close(logprobs[mask], others[mask], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(values[mask], other_values[mask], rtol=1e-5, atol=2e-6)
    assert tiny.difference(gradients, other_gradients) < 2e-6


def columns_with(extra):
    """The columns of the ragged batch with `extra` columns of padding."""
    columns = tiny.experience().columns()
    return {
        name: torch.nn.functional.pad(column, (0, extra), value=column.dtype == torch.float32)
        for name, column in columns.items()
    }


@pytest.mark.parametrize("budget", BUDGETS)
def test_micro_batches_hold_every_row_once(budget):
    learner = tiny.learner(tiny.settings(tokens=budget))
    parts = learner.micro_batches(tiny.experience())

    assert sorted(torch.cat([part.index for part in parts]).tolist()) == [*range(8)]
    assert sum(int(part.response_mask.sum()) for part in parts) == sum(tiny.RESPONSES)


def test_a_minibatch_without_rows_is_one_blank_micro_batch():
    learner = tiny.learner(tiny.settings())
    none = tiny.experience().rows(torch.zeros(0, dtype=torch.long))

    (blank,) = learner.micro_batches(none)

    assert not blank.response_mask.any()
    logprobs, entropies, values, _ = learner.forward(blank, entropy="metric", last=True)
    assert logprobs.shape == entropies.shape == values.shape == (1, 1)


def test_control_gives_a_figure_a_step():
    inputs = ControlInputs(obs=tiny.noise((5, 4, 3), 1), actions=torch.zeros(5, 4))
    whole, split = (tiny.control_learner(tiny.settings(tokens=n)) for n in (1000, 4))

    assert whole.values(inputs).shape == (5, 4)
    torch.testing.assert_close(whole.values(inputs), split.values(inputs))
    mask = torch.ones(5, 4, dtype=torch.bool)
    torch.testing.assert_close(whole.logprobs(inputs, mask), split.logprobs(inputs, mask))


def test_the_version_counts_steps_of_the_policy_and_a_warm_up_of_the_critic_moves_no_policy():
    config = tiny.settings(critic_learning_rate=1e-3, learning_rate=1e-3)
    learner = tiny.learner(config)
    before = tiny.weights(learner)

    figures = update(learner, tiny.experience(), config, critic_only=True).values()

    after = tiny.weights(learner)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"critic"}
    assert learner.policy_version == 0
    assert "policy/grad_norm" not in figures
    update(learner, tiny.experience(), config)
    assert learner.policy_version == 1


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_reported_norms_are_those_before_clipping(critic):
    figures = {}
    for limit in (None, 1e-3):
        config = tiny.settings(critic=critic, max_grad_norm=limit)
        figures[limit] = update(tiny.learner(config), tiny.experience(), config).values()

    assert figures[None]["policy/grad_norm"] == pytest.approx(figures[1e-3]["policy/grad_norm"])
    assert figures[None]["policy/grad_norm"] > 0.01
    assert ("value/grad_norm" in figures[None]) == (critic == "separate")


def test_rates_follow_the_schedule_of_both_engines():
    config = tiny.settings(learning_rate=1e-3, critic_learning_rate=1e-2, lr_schedule="linear")
    learner = tiny.learner(config)
    learner.anneal(0.75)

    figures = update(learner, tiny.experience(), config).values()

    assert figures["policy/lr"] == pytest.approx(0.25e-3)
    assert figures["value/lr"] == pytest.approx(0.25e-2)


def test_no_weight_of_the_critic_moves_when_the_policy_s_gradient_is_not_finite():
    config = tiny.settings(learning_rate=1e-2, critic_learning_rate=1e-2)
    learner = tiny.learner(config)
    before = tiny.weights(learner)
    head = learner.policy_module.model.lm_head.weight
    hook = head.register_hook(lambda gradient: gradient * torch.nan)

    with pytest.raises(NonFiniteError, match="gradient of the policy is not finite"):
        update(learner, tiny.experience(), config)

    hook.remove()
    after = tiny.weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert learner.policy_version == 0


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_state_restores_every_bit_and_the_next_step(critic):
    config = tiny.settings(critic=critic, learning_rate=1e-2, critic_learning_rate=1e-2)
    one, other = tiny.learner(config), tiny.learner(config, seed=3)
    for learner, times in ((one, 2), (other, 1)):
        for _ in range(times):
            update(learner, tiny.experience(), config)
    other.load_state_dict([one.state_dict()])

    figures = [update(learner, tiny.experience(), config).values() for learner in (one, other)]

    assert figures[0] == figures[1]
    assert one.policy_version == other.policy_version == 3
    left, right = tiny.weights(one), tiny.weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_weights_are_the_policy_s_own():
    learner = tiny.learner(tiny.settings())
    named = dict(learner.policy_module.named_parameters())
    assert {name: tensor.data_ptr() for name, tensor in learner.weights()} == {
        name: parameter.data_ptr() for name, parameter in named.items()
    }


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_critic_learns_a_return_that_can_be_learned(critic):
    rates = {"learning_rate": 3e-3, "critic_learning_rate": 3e-3, "value_coef": 1.0}
    config = tiny.settings(critic=critic, num_epochs=25, target_kl=None, value_clip=None, **rates)
    learner = tiny.learner(config)
    made = tiny.rollout()
    reward = (made.inputs.actions % 5).float() * made.response_mask  # the token itself says it
    explained = []
    for iteration in range(2):
        values = learner.values(made.inputs)
        seen = tiny.rollout(rewards=reward, values=values[:, :-1], next_values=values[:, 1:])
        experience = make_experience(seen, config.ppo)
        explained.append(describe(experience).values()["value/explained_var"])
        learn(learner, experience, config, iteration)

    assert explained[0] < 0.3
    assert explained[1] > 0.8


def test_a_frozen_policy_scores_as_the_learner_does_and_never_trains():
    config = tiny.settings(learning_rate=1e-2, tokens=20)
    learner = tiny.learner(config)
    twin = CausalPolicy(tiny.llama(), temperature=1.0, chunk=512)
    frozen = FrozenPolicy(twin, config, device=tiny.CPU, autocast=None)
    made = tiny.rollout()
    before = frozen.logprobs(made.inputs, made.response_mask)
    assert torch.equal(before, learner.logprobs(made.inputs, made.response_mask))

    for _ in range(3):
        update(learner, tiny.experience(), config)

    assert torch.equal(before, frozen.logprobs(made.inputs, made.response_mask))
    assert not torch.equal(before, learner.logprobs(made.inputs, made.response_mask))
