import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from tests.unit.trainers.collect.test_control_collector import Actor, collector_of, settings
from trainers.collect.action_limits import ActionLimits, limits_of
from trainers.distributed.collectives import World
from trainers.errors import ConfigError
from trainers.evaluation.control import evaluate_control
from trainers.ppo import make_experience


class Masked(gymnasium.Env):
    """Allows other actions at each step; pays 1 for the allowed one with the highest number."""

    def __init__(self, limit=4, given="both"):
        self.observation_space = Box(0.0, 10.0, (2,), np.float32)
        self.action_space = Discrete(4)
        self.limit, self.given = limit, given

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        self.first = int(self.np_random.integers(3))
        return self._obs(), self._info()

    def _obs(self):
        return np.array([self.count, self.first], np.float32)

    def allowed(self):
        mask = np.zeros(4, bool)
        mask[[(self.first + self.count) % 4, (self.first + self.count + 1) % 4]] = True
        return mask

    def _info(self):
        info = {"action_mask": self.allowed(), "action_prior": np.arange(4, dtype=np.float32) / 4}
        sometimes = self.given == "sometimes" and self.count == 2
        return {} if self.given == "never" or sometimes else info

    def step(self, action):
        assert self.given == "never" or self.allowed()[action], "an action that is not allowed"
        paid = float(action == np.flatnonzero(self.allowed())[-1])
        self.count += 1
        return self._obs(), paid, self.count == self.limit, False, self._info()


def test_masks_and_priors_of_every_step_are_in_the_rollout_and_bind_what_is_drawn():
    rollout = collector_of(Masked, settings(3, 9, "Masked")).collect(Actor(Masked()), 0)
    mask, actions = rollout.inputs.action_mask, rollout.inputs.actions
    assert mask.shape == (3, 9, 4)
    assert (mask.sum(-1) == 2).all()
    assert mask.gather(-1, actions.unsqueeze(-1)).all()
    assert torch.equal(rollout.inputs.action_prior[0, 0], torch.arange(4) / 4)
    counts, firsts = rollout.inputs.obs.unbind(-1)
    expected = (counts + firsts).long() % 4
    assert mask.gather(-1, expected.unsqueeze(-1)).all()  # each step has its own mask


def test_the_same_masks_in_rollout_and_loss_give_a_ratio_of_one_and_others_do_not():
    actor = Actor(Masked())
    with torch.no_grad():
        actor.policy_module.head.logits.weight.normal_(generator=torch.Generator().manual_seed(0))
    made = settings(3, 9, "Masked")
    experience = make_experience(collector_of(Masked, made).collect(actor, 0), made.ppo)

    def ratios(inputs):
        now = actor.policy_module(inputs, experience.response_mask).logprobs
        return (now - experience.old_logprobs).exp()

    ones = torch.ones_like(experience.old_logprobs)
    torch.testing.assert_close(ratios(experience.inputs), ones)
    other = experience.inputs.rows(slice(None))
    other.action_mask[:] = True
    assert (ratios(other) - 1).abs().max() > 0.1


def test_an_environment_without_limits_has_none_in_its_rollout():
    rollout = collector_of(lambda: Masked(given="never"), settings(2, 6, "M")).collect(
        Actor(Masked()), 0
    )
    assert rollout.inputs.action_mask is None
    assert rollout.inputs.action_prior is None


def test_whole_episodes_without_a_critic_keep_masks_behind_their_end():
    made = settings(2, 7, "Masked", critic="none", advantage="rloo", samples_per_prompt=2)
    rollout = collector_of(Masked, made, count=4).collect(Actor(Masked()), 0)
    assert rollout.inputs.action_mask.shape == (4, 7, 4)
    assert rollout.response_mask.sum(1).tolist() == [4, 4, 4, 4]


def test_evaluation_takes_allowed_actions_alone():
    result = evaluate_control(
        Actor(Masked()).policy_module, Masked, env="Masked", num_episodes=20, seed=0, world=World()
    )
    assert len(result.scores) == 20


def test_limits_that_come_and_go_are_refused():
    with pytest.raises(ConfigError, match="in some infos and not in others"):
        collector_of(lambda: Masked(given="sometimes"), settings(2, 6, "M")).collect(
            Actor(Masked()), 0
        )


@pytest.mark.parametrize(
    ("info", "space", "message"),
    [
        ({"action_mask": np.ones(3, bool)}, Discrete(4), r"action_mask of shape \(3,\)"),
        ({"action_prior": np.ones(2)}, Box(-1, 1, (2,)), "one entry per action of a Discrete"),
        ({"action_mask": np.zeros(4, bool)}, Discrete(4), "allows no action"),
    ],
)
def test_limits_that_do_not_fit_are_refused(info, space, message):
    with pytest.raises(ConfigError, match=message):
        limits_of(info, space)


def test_infos_without_limits_give_none():
    assert limits_of({"other": 1}, Box(-1, 1, (2,))) == ActionLimits(None, None)
