import math
from dataclasses import replace
from itertools import chain

import pytest
import torch

from tests import tiny
from trainers.batch import ControlInputs, Metrics, Rollout
from trainers.config.ppo import PPOConfig
from trainers.functional.advantages import gae
from trainers.functional.ppo_metrics import describe
from trainers.ppo import make_experience, minibatches, over_target_kl, whiten

PLAIN = PPOConfig(whiten_advantages=False, gamma=0.97, gae_lambda=0.9)
COLUMNS = (
    "logprobs",
    "generator_logprobs",
    "ref_logprobs",
    "rewards",
    "values",
    "next_values",
)


def with_observations():
    """A rollout of several turns: what the environment said stands between the answers."""
    made = tiny.rollout(prompts=(2, 1, 3), responses=(9, 7, 9))
    said = torch.tensor(
        [
            [1, 1, 0, 0, 0, 1, 0, 1, 1],
            [1, 1, 1, 1, 1, 0, 1, 0, 0],
            [0, 1, 1, 0, 0, 0, 0, 1, 1],  # a rollout may begin in what was said
        ]
    ).bool()
    ends = torch.zeros_like(said)
    ends[0, [1, 8]] = ends[1, 6] = ends[2, 8] = True
    terminated = ends.clone()
    terminated[2, 8] = False
    return replace(made, response_mask=said, boundary=ends, terminated=terminated)


def poisoned(made, poison):
    """The rollout with `poison` everywhere that is not an action."""
    junk = {
        name: torch.where(made.response_mask, getattr(made, name), torch.tensor(poison))
        for name in COLUMNS
    }
    flags = {name: getattr(made, name) | ~made.response_mask for name in ("terminated", "boundary")}
    return replace(made, **junk, **flags)


def test_whitened_advantages_have_mean_zero_and_variance_one_over_the_mask_alone():
    mask = tiny.experience().response_mask
    advantages = torch.where(mask, 3.0 + 7.0 * tiny.noise(mask.shape, 1), torch.tensor(1e6))

    white = whiten(advantages, mask)

    picked = white[mask].double()
    assert float(picked.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(picked.var(unbiased=False)) == pytest.approx(1.0, abs=1e-6)
    assert not white[~mask].any()
    raw = advantages[mask].double()
    oracle = (raw - raw.mean()) / (raw.var(unbiased=False) + 1e-8).sqrt()
    torch.testing.assert_close(picked, oracle, rtol=1e-5, atol=1e-6)


def test_whitening_ignores_nan_outside_the_mask():
    mask = torch.tensor([[True, True, False]])
    white = whiten(torch.tensor([[1.0, 3.0, math.nan]]), mask)
    torch.testing.assert_close(white, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_whitening_survives_a_large_mean():
    mask = torch.ones(1, 1000, dtype=torch.bool)
    advantages = 1e5 + tiny.noise((1, 1000), 3)
    assert float(whiten(advantages, mask).double().std()) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("advantages", "mask"),
    [
        ([[5.0, 1.0]], [[True, False]]),
        ([[2.5, 2.5], [2.5, 2.5]], [[True, True], [True, True]]),
        ([[1.0, 2.0]], [[False, False]]),
    ],
)
def test_one_action_equal_ones_or_none_whiten_to_zero(advantages, mask):
    advantages = torch.tensor(advantages)
    assert torch.equal(whiten(advantages, torch.tensor(mask)), torch.zeros_like(advantages))


def test_what_is_said_between_turns_neither_decays_nor_carries():
    made = with_observations()

    experience = make_experience(made, PLAIN)

    for row in range(3):
        picked = made.response_mask[row]
        names = ("rewards", "values", "next_values", "terminated", "boundary")
        compact = {name: getattr(made, name)[row, picked].unsqueeze(0) for name in names}
        advantages, returns = gae(**compact, gamma=0.97, gae_lambda=0.9)
        torch.testing.assert_close(experience.advantages[row, picked], advantages[0])
        torch.testing.assert_close(experience.returns[row, picked], returns[0])
    assert not experience.advantages[~made.response_mask].any()
    assert not experience.returns[~made.response_mask].any()


def by_definition(made, gamma, gae_lambda):
    """Advantages by action, episode by episode: a loop in float64 over the paper's sums.

    A_t = sum_l (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), over the
    actions of an episode, whichever rows they lie in; V = 0 after the task's end.
    """
    found = {}
    for episode in sorted(set(made.index.tolist())):
        rows = [row for row, index in enumerate(made.index.tolist()) if index == episode]
        steps = [(row, int(t)) for row in rows for t in made.response_mask[row].nonzero()]
        for start, first in enumerate(steps):
            total = 0.0
            for far, at in enumerate(steps[start:]):
                after = 0.0 if made.terminated[at] else float(made.next_values[at])
                delta = float(made.rewards[at]) + gamma * after - float(made.values[at])
                total += (gamma * gae_lambda) ** far * delta
                if made.boundary[at]:
                    break
            found[first] = total
    return found


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.97, 0.9), (1.0, 1.0), (0.9, 0.0)])
@pytest.mark.parametrize("rows", [(0, 1, 2), (0, 0, 1), (0, 1, 1), (7, 7, 7), (5, 2, 2)])
def test_an_experience_equals_the_definition_whatever_rows_an_episode_lies_in(
    gamma, gae_lambda, rows
):
    made = replace(with_observations(), index=torch.tensor(rows))
    ends = made.boundary.clone()
    for row in range(2):  # an episode that goes on in the next row does not end here
        ends[row] &= rows[row] != rows[row + 1]
    made = replace(made, boundary=ends, terminated=made.terminated & ends)

    config = replace(PLAIN, gamma=gamma, gae_lambda=gae_lambda)
    experience = make_experience(made, config)

    expected = by_definition(made, gamma, gae_lambda)
    assert len(expected) == int(made.response_mask.sum())
    for at, value in expected.items():
        assert float(experience.advantages[at]) == pytest.approx(value, abs=1e-5), at
        assert float(experience.returns[at]) == pytest.approx(
            value + float(made.values[at]), abs=1e-5
        )
    assert not experience.advantages[~made.response_mask].any()
    # In another order of episodes, or with more padding, they are the same.
    order = torch.argsort(torch.tensor(rows), stable=True, descending=True)
    wide = {
        name: torch.nn.functional.pad(getattr(made, name)[order], (0, 3))
        for name in (*COLUMNS, "response_mask", "terminated", "boundary")
    }
    again = make_experience(
        replace(made, inputs=made.inputs.rows(order), index=made.index[order], **wide), config
    )
    torch.testing.assert_close(again.advantages[:, :-3], experience.advantages[order])


def test_rows_of_an_episode_are_in_one_minibatch():
    made = replace(tiny.experience(), index=torch.tensor([0, 0, 1, 2, 2, 2, 3, 4]))
    parts = members(made, number=3)

    assert sorted(chain(*parts)) == [0, 0, 1, 2, 2, 2, 3, 4]
    assert sum(len(set(part)) for part in parts) == 5


@pytest.mark.parametrize("poison", [1e6, -math.inf, math.nan])
@pytest.mark.parametrize("rows", ["ragged", "turns"])
@pytest.mark.parametrize("white", [True, False])
def test_padding_content_changes_nothing_of_an_experience(poison, rows, white):
    made = tiny.rollout() if rows == "ragged" else with_observations()
    config = replace(PLAIN, whiten_advantages=white)

    clean, other = (make_experience(one, config) for one in (made, poisoned(made, poison)))

    for name, column in clean.columns().items():
        assert torch.equal(column, other.columns()[name]), name
    assert describe(clean) == describe(other)


def test_returns_are_those_of_before_whitening():
    made = tiny.rollout()
    raw, white = (
        make_experience(made, replace(PLAIN, whiten_advantages=flag)) for flag in (False, True)
    )

    assert torch.equal(raw.returns, white.returns)
    mask = made.response_mask
    torch.testing.assert_close(raw.returns[mask], (raw.advantages + made.values)[mask])
    assert torch.equal(white.advantages, whiten(raw.advantages, mask))


def test_a_row_that_does_not_count_changes_no_other_row():
    made = tiny.rollout()
    mask = made.response_mask.clone()
    mask[3] = False
    experience = make_experience(replace(made, response_mask=mask), PPOConfig())
    others = torch.tensor([0, 1, 2, 4, 5, 6, 7])

    without = Rollout(
        inputs=made.inputs.rows(others),
        **{
            name: getattr(made, name)[others]
            for name in (*COLUMNS, "response_mask", "terminated", "boundary", "index")
        },
    )

    alone = make_experience(without, PPOConfig())
    assert torch.equal(experience.advantages[others], alone.advantages)
    assert not experience.advantages[3].any()


def test_a_rollout_without_a_single_action_is_all_zero():
    made = tiny.rollout(responses=(0, 0), prompts=(1, 2))
    experience = make_experience(made, PPOConfig())

    assert not any(column.any() for column in experience.columns().values())
    assert all(math.isfinite(figure) for figure in describe(experience).values().values())


def test_equal_rewards_and_no_critic_give_no_advantage():
    zeros = torch.zeros(tiny.rollout().response_mask.shape)
    flat = {"rewards": zeros, "values": zeros, "next_values": zeros}
    experience = make_experience(tiny.rollout(**flat), PPOConfig())

    assert not experience.advantages.any()


@pytest.mark.parametrize(
    ("setting", "field"), [("recompute", "logprobs"), ("generator", "generator_logprobs")]
)
def test_old_logprobs_are_whose_the_setting_says(setting, field):
    made = tiny.rollout()
    experience = make_experience(made, PPOConfig(old_logprobs=setting))

    mask = made.response_mask
    assert torch.equal(experience.old_logprobs[mask], getattr(made, field)[mask])


def test_steps_of_an_environment_become_rows_with_advantages_of_their_episode():
    shape = (2, 5)
    ends = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 1]]).bool()
    columns = {name: tiny.noise(shape, seed) for seed, name in enumerate(COLUMNS)}
    made = Rollout(
        inputs=ControlInputs(obs=tiny.noise((2, 5, 3), 1), actions=tiny.noise(shape, 2)),
        response_mask=torch.ones(shape, dtype=torch.bool),
        terminated=ends & torch.tensor([[True], [False]]),
        boundary=ends,
        index=torch.tensor([2, 3]),
        **columns,
    )

    experience = make_experience(made, PLAIN)

    names = ("rewards", "values", "next_values", "terminated", "boundary")
    expected, _ = gae(**{name: getattr(made, name) for name in names}, gamma=0.97, gae_lambda=0.9)
    assert experience.advantages.shape == (10, 1)
    torch.testing.assert_close(experience.advantages, expected.reshape(10, 1))
    assert experience.index.tolist() == [*range(10, 20)]


def members(experience, *, iteration=0, epoch=0, seed=0, number=4):
    """The sequence indices of each minibatch."""
    config = tiny.settings(seed=seed, num_minibatches=number)
    return [
        experience.index[rows].tolist()
        for rows in minibatches(experience, config, iteration, epoch)
    ]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 8])
def test_minibatches_are_a_partition_into_nearly_equal_parts(number):
    parts = members(tiny.experience(), number=number)

    assert len(parts) == number
    assert sorted(chain(*parts)) == [*range(8)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_membership_depends_on_seed_iteration_and_epoch():
    made = tiny.experience()
    seen = {
        str(members(made, **{name: value}))
        for name in ("seed", "iteration", "epoch")
        for value in (0, 1, 2)
    }
    assert len(seen) == 7


def test_membership_depends_on_nothing_else():
    made = tiny.experience()
    before = members(made)
    torch.manual_seed(99)

    assert members(made) == before
    turned = made.rows(torch.arange(8).flip(0))
    assert members(turned) == before


@pytest.mark.parametrize("split", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[5], [0, 7, 1, 2, 3, 4, 6]]])
def test_membership_does_not_depend_on_how_rows_lie_on_ranks(monkeypatch, split):
    made = tiny.experience()
    whole = members(made)
    monkeypatch.setattr("trainers.ppo.global_max", lambda _: torch.tensor(7))

    parts = [members(made.rows(torch.tensor(rows))) for rows in split]

    for number in range(4):
        assert sorted(chain(*(part[number] for part in parts))) == sorted(whole[number])


def test_the_constraint_has_no_hidden_factor():
    config = PPOConfig(target_kl=0.1)
    for figure, over in ((0.0999, False), (0.1, False), (0.1001, True)):
        seen = Metrics.scalars({"policy/approxkl_avg": figure})
        assert over_target_kl(seen, config) == over
    assert not over_target_kl(Metrics(), config)
    huge = Metrics.scalars({"policy/approxkl_avg": 100.0})
    assert not over_target_kl(huge, PPOConfig(target_kl=None))


def test_the_description_of_an_experience_equals_a_flat_recomputation():
    made = tiny.rollout()
    figures = describe(make_experience(made, PPOConfig(gamma=0.97, gae_lambda=0.9))).values()

    mask = made.response_mask
    raw = make_experience(made, PLAIN)
    advantages, returns = raw.advantages[mask].double(), raw.returns[mask].double()
    expected = {
        "advantages/mean": advantages.mean(),
        "advantages/std": advantages.std(unbiased=False),
        "advantages/min": advantages.min(),
        "advantages/max": advantages.max(),
        "value/mean": made.values[mask].double().mean(),
        "value/return_mean": returns.mean(),
        "value/explained_var": 1 - advantages.var(unbiased=False) / returns.var(unbiased=False),
    }
    assert figures == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-5
    )


def test_a_perfect_critic_explains_everything_and_a_constant_one_nothing():
    shape = tiny.experience().response_mask.shape
    returns = tiny.noise(shape, 1)
    for values, explained in ((returns, 1.0), (torch.zeros(shape), 0.0)):
        made = tiny.experience(old_values=values, returns=returns)
        assert describe(made).values()["value/explained_var"] == pytest.approx(explained, abs=1e-6)
    flat = tiny.experience(returns=torch.ones(shape))
    assert "value/explained_var" not in describe(flat).values()
