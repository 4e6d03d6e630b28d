"""PPO without a critic: advantages of whole episodes, and updates that read no value."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from trainers.batch import Rollout
from trainers.config.ppo import PPOConfig
from trainers.functional.advantages import group_relative
from trainers.functional.ppo_metrics import describe
from trainers.ppo import make_experience, update, whiten

ROWS = 8
GROUPS = [0, 0, 0, 0, 1, 1, 1, 1]


def ppo_of(**changes):
    """Settings without a critic."""
    return PPOConfig(**{"critic": "none", "advantage": "rloo", **changes})


def without_values(**changes):
    """The ragged rollout as a collector returns it without a critic."""
    return replace(tiny.rollout(**changes), values=None, next_values=None)


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
@pytest.mark.parametrize("scale", [None, False, True])
def test_every_action_gets_what_its_episode_earned_beside_its_group(advantage, scale):
    made = without_values()
    ppo = ppo_of(advantage=advantage, scale_advantages=scale)

    experience = make_experience(made, ppo)

    mask = made.response_mask
    expected = group_relative(
        (made.rewards * mask).sum(1),
        torch.tensor(GROUPS),
        mask.any(1),
        leave_one_out=advantage == "rloo",
        scale=advantage == "grpo" if scale is None else scale,
    )
    torch.testing.assert_close(experience.advantages, expected[:, None] * mask)
    assert experience.returns is None
    assert experience.old_values is None


def test_an_episode_of_several_rows_is_one_member_of_its_group():
    made = without_values(prompts=(2, 3, 2, 3), responses=(3, 4, 2, 5))
    index = torch.tensor([0, 0, 1, 1])  # two episodes of two rows
    experience = make_experience(replace(made, index=index), ppo_of(samples_per_prompt=2))

    mask = made.response_mask
    first, second = (float((made.rewards * mask)[rows].sum()) for rows in ([0, 1], [2, 3]))
    by_row = [row[kept] for row, kept in zip(experience.advantages, mask, strict=True)]
    for row, expected in zip(by_row, [first - second] * 2 + [second - first] * 2, strict=True):
        torch.testing.assert_close(row, torch.full_like(row, expected))


def test_an_episode_that_does_not_count_is_in_no_mean():
    made = without_values()
    mask = made.response_mask.clone()
    mask[1] = mask[7] = False
    others = torch.tensor([0, 2, 3, 4, 5, 6])

    experience = make_experience(replace(made, response_mask=mask), ppo_of())

    columns = ("logprobs", "rewards", "response_mask", "terminated", "boundary", "index")
    alone = make_experience(
        Rollout(
            inputs=made.inputs.rows(others),
            **{name: getattr(made, name)[others] for name in columns},
        ),
        ppo_of(),
    )
    assert torch.equal(experience.advantages[others], alone.advantages)
    assert not experience.advantages[[1, 7]].any()


def test_whitening_is_off_unless_asked_for():
    made = without_values()
    plain, asked = (make_experience(made, ppo_of(whiten_advantages=f)) for f in (None, True))

    assert torch.equal(asked.advantages, whiten(plain.advantages, made.response_mask))
    assert make_experience(tiny.rollout(), PPOConfig()).advantages[
        made.response_mask
    ].mean() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("epochs", [1, 4])
def test_an_update_says_nothing_of_a_critic(epochs):
    config = tiny.settings(critic="none", num_epochs=epochs, learning_rate=1e-2)
    learner = tiny.learner(config)
    assert learner.critic_module is None
    assert learner.values(tiny.text()) is None
    before = tiny.weights(learner)

    experience = make_experience(without_values(), config.ppo)
    figures = (describe(experience) | update(learner, experience, config)).values()

    assert [name for name in figures if "value" in name] == []
    assert figures["advantages/std"] > 0
    assert figures["loss/total"] == pytest.approx(figures["loss/policy_avg"])
    assert any(
        not torch.equal(before[name], after) for name, after in tiny.weights(learner).items()
    )


def test_the_gradient_is_that_of_a_policy_whose_critic_is_set_aside():
    made = tiny.experience()
    alone, beside = (
        tiny.gradients_of(tiny.learner(config), made, config)
        for config in (tiny.settings(critic="none"), tiny.settings(critic="separate"))
    )
    of_policy = {name: grad for name, grad in beside.items() if name in alone}

    assert len(of_policy) == len(alone) > 0
    assert tiny.difference(alone, of_policy) == 0.0
