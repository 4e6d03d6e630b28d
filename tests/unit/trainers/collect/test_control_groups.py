"""Control without a critic: whole episodes, those of a group from the same start."""

import pytest
import torch

from tests.unit.trainers.collect.test_control_collector import Actor, Count, cartpole, collector_of
from tests.unit.trainers.collect.tiny import config
from trainers.batch import ControlInputs
from trainers.distributed.collectives import World
from trainers.ppo import make_experience

STARTS, SIZE, STEPS = 3, 4, 60


def settings(env="CartPole-v1", starts=STARTS, steps=STEPS, **ppo):
    made = {
        "critic": "none",
        "advantage": "rloo",
        "num_prompts": starts,
        "samples_per_prompt": SIZE,
        "num_steps": steps,
        **ppo,
    }
    return config(ppo=made, envs=[{"id": env}])


def collector(make=cartpole, world=None, starts=STARTS, **changes):
    made = settings(starts=starts, **changes)
    return collector_of(make, made, world, count=(starts // (world or World()).size) * SIZE)


def test_every_environment_plays_one_whole_episode():
    rollout = collector().collect(Actor(cartpole()), 0)

    lengths = rollout.response_mask.sum(1)
    assert rollout.response_mask.shape == (STARTS * SIZE, STEPS)
    assert lengths.min() < lengths.max() < STEPS, "CartPole falls at different times"
    columns = torch.arange(STEPS)
    assert torch.equal(rollout.response_mask, columns < lengths[:, None])
    ends = columns == lengths[:, None] - 1
    assert torch.equal(rollout.terminated & rollout.response_mask, ends)
    assert torch.equal(rollout.boundary & rollout.response_mask, ends)
    assert torch.equal(rollout.rewards.sum(1), lengths.float())
    assert not rollout.logprobs[~rollout.response_mask].any()
    assert rollout.index.tolist() == [*range(STARTS * SIZE)]


def test_those_of_a_group_begin_at_the_same_start_and_act_differently():
    made = collector()
    actor = Actor(cartpole())
    for iteration in range(3):  # episodes stay in step although they end at different times
        rollout = made.collect(actor, iteration)
        starts = rollout.inputs.obs[:, 0].unflatten(0, (STARTS, SIZE))
        assert torch.equal(starts, starts[:, :1].expand_as(starts))
        assert len(starts[:, 0].unique(dim=0)) == STARTS
        assert len(rollout.inputs.actions.unique(dim=0)) > STARTS


def test_an_episode_that_reaches_the_limit_of_steps_is_cut_and_the_next_begins():
    made = collector(lambda: Count(limit=50), steps=7, env="Count")
    actor = Actor(Count())
    for iteration in range(2):
        rollout = made.collect(actor, iteration)
        assert rollout.inputs.obs[0, :, 0].tolist() == [*range(7)]
        assert rollout.response_mask.all()
        assert not rollout.terminated.any()
        assert made.metrics().values()["env/Count/truncated_frac"] == 1.0
        assert made.metrics().values()["env/Count/length"] == 7
    assert made.metrics().values()["train/episodes"] == 2 * STARTS * SIZE


def test_steps_behind_the_end_are_no_rows():
    rollout = collector().collect(Actor(cartpole()), 0)
    experience = make_experience(rollout, settings().ppo)

    assert isinstance(experience.inputs, ControlInputs)
    assert len(experience) == int(rollout.response_mask.sum())
    assert experience.response_mask.all()
    assert len(experience.index.unique()) == len(experience)
    of_first = experience.advantages[experience.index < STEPS]
    earned = rollout.rewards.sum(1)[:SIZE]
    expected = earned[0] - earned[1:].mean()
    torch.testing.assert_close(of_first, expected.expand_as(of_first))


def test_ranks_play_what_one_alone_plays():
    actor = Actor(cartpole())
    alone = collector(starts=4).collect(actor, 0)
    parts = [
        collector(world=World(rank=rank, size=2), starts=4).collect(actor, 0) for rank in (0, 1)
    ]
    for name in ("rewards", "response_mask", "index"):
        both = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(getattr(alone, name), both)


def test_it_goes_on_where_its_state_was_taken():
    actor, one, other = Actor(cartpole()), collector(), collector()
    one.collect(actor, 0)
    other.load_state_dict(one.state_dict())

    first, second = (made.collect(actor, 1) for made in (one, other))

    assert torch.equal(first.inputs.obs, second.inputs.obs)
    assert torch.equal(first.rewards, second.rewards)


@pytest.mark.parametrize("kind", ["none", "batch", "running"])
def test_statistics_of_rewards_are_of_steps_that_were_taken(kind):
    rollout = collector(reward_normalize=kind, reward_scale=2.0).collect(Actor(cartpole()), 0)

    # Every step pays 1: equal scores have no scale, and a batch has its mean taken off.
    paid = {"none": 2.0, "batch": 0.0, "running": 2.0}[kind]
    assert rollout.rewards[rollout.response_mask].eq(paid).all()
    assert not rollout.rewards[~rollout.response_mask].any()


def test_no_environment_acts_once_every_episode_is_over():
    acted = []

    class Watched(Count):
        def step(self, action):
            acted.append(self.count)
            return super().step(action)

    made = collector(lambda: Watched(limit=5), env="Count", steps=50)
    actor = Actor(Count())
    calls = []
    acting = actor.policy_module.acting

    def counted():
        act = acting()
        return lambda obs, *rest: (calls.append(len(obs)), act(obs, *rest))[1]

    actor.policy_module.acting = counted
    rollout = made.collect(actor, 0)
    assert rollout.response_mask.sum(1).tolist() == [5] * STARTS * SIZE
    assert len(acted) == 5 * STARTS * SIZE
    assert calls == [STARTS * SIZE] * 5
