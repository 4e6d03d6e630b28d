import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from llmgym.envs.speculative import Speculative
from llmgym.speculative.traces import made_trace
from tests.unit.trainers.collect.tiny import config
from trainers.batch import ControlInputs
from trainers.checkpoint.state_files import read_state, write_state
from trainers.collect.control import ControlCollector
from trainers.collect.env_slots import make_envs
from trainers.config.files import read
from trainers.distributed.collectives import World
from trainers.errors import ConfigError
from trainers.models.mlp import PolicyMLP, ValueMLP
from trainers.ppo import make_experience

STEPS = 40


class Count(gymnasium.Env):
    """Pays its step number and counts; ends by itself after `limit` steps, or is cut there."""

    def __init__(self, limit=5, cut=False):
        self.observation_space = Box(0.0, 100.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self.limit, self.cut = limit, cut

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._obs(), {}

    def _obs(self):
        return np.array([self.count], np.float32)

    def step(self, action):
        self.count += 1
        over = self.count == self.limit
        return self._obs(), float(self.count), over and not self.cut, over and self.cut, {}


class Actor:
    """Acts with an MLP; the value of an observation is its first number plus 1000."""

    policy_version = 0

    def __init__(self, env, critic=False, seed=0):
        rng = torch.Generator().manual_seed(seed)
        size = int(np.prod(env.observation_space.shape))
        self.policy_module = PolicyMLP(size, env.action_space, hidden_sizes=[8], rng=rng)
        self.critic = ValueMLP(size, hidden_sizes=[8], rng=rng) if critic else None

    @torch.no_grad()
    def logprobs(self, inputs, response_mask):
        return self.policy_module(inputs, response_mask).logprobs

    @torch.no_grad()
    def values(self, inputs):
        if self.critic is not None:
            return self.critic(inputs)
        return inputs.obs[..., 0] + 1000

    def weights(self):
        return iter(())


def settings(num_envs=3, steps=STEPS, env="CartPole-v1", seed=0, **ppo):
    made = {"num_prompts": num_envs, "samples_per_prompt": 1, "num_steps": steps, **ppo}
    return config(ppo=made, run={"seed": seed}, envs=[{"id": env}])


def collector_of(make, config, world=None, count=None):
    count = config.ppo.num_prompts if count is None else count
    return ControlCollector(make_envs(make, count), config, world or World())


def cartpole():
    return gymnasium.make("CartPole-v1")


def pendulum():
    return gymnasium.make("Pendulum-v1", max_episode_steps=30)


@pytest.mark.parametrize("make", [cartpole, pendulum])
def test_each_environment_alone_repeats_its_row_of_the_rollout(make):
    one = make()
    actor = Actor(one)
    made = settings()
    rollout = collector_of(make, made).collect(actor, 0)

    for row in range(3):
        env = make()
        episode = 0

        def begin(episode, row=row, env=env):
            words = np.random.SeedSequence((0, row, episode)).generate_state(1)
            return env.reset(seed=int(words[0]))[0]

        obs = begin(episode)
        for t in range(STEPS):
            np.testing.assert_array_equal(rollout.inputs.obs[row, t].numpy(), obs)
            action = rollout.inputs.actions[row, t].numpy()
            if isinstance(env.action_space, Box):
                action = np.clip(action, env.action_space.low, env.action_space.high)
            else:
                action = int(action)
            obs, reward, terminated, truncated, _ = env.step(action)
            assert float(rollout.rewards[row, t]) == pytest.approx(float(reward), rel=1e-6)
            assert bool(rollout.terminated[row, t]) == terminated
            if t + 1 < STEPS:
                assert bool(rollout.boundary[row, t]) == (terminated or truncated)
            if terminated or truncated:
                episode += 1
                obs = begin(episode)
    assert rollout.boundary[:, -1].all()


@pytest.mark.parametrize("cut", [False, True])
def test_the_last_observation_is_the_episodes_own_and_not_the_next_ones(cut):
    actor = Actor(Count())
    rollout = collector_of(lambda: Count(5, cut), settings(2, 12, "Count")).collect(actor, 0)

    counts = [0, 1, 2, 3, 4] * 2 + [0, 1]
    assert rollout.inputs.obs[0, :, 0].tolist() == counts
    assert rollout.values[0].tolist() == [1000 + n for n in counts]
    # After the step the count is one more, also where it is the last: 5, and not the reset's 0.
    assert rollout.next_values[0].tolist() == [1001 + n for n in counts]
    ends = [n == 4 for n in counts]
    assert rollout.terminated[0].tolist() == ([False] * 12 if cut else ends)
    assert rollout.boundary[0].tolist() == [*ends[:-1], True]
    assert rollout.rewards.sum(1).tolist() == [2 * 15 + 3] * 2


@pytest.mark.parametrize(
    ("mode", "ends", "paid"),
    [("auto", 0, 5.0), ("bootstrap", 0, 5.0), ("score", 1, 5.0), ("penalty", 1, -2.0)],
)
def test_on_truncation_decides_what_a_cut_episode_of_steps_is(mode, ends, paid):
    # An episode of 5 steps pays 1 to 5; the one that begins at step 5 is cut by the rollout alone.
    made = settings(1, 8, "Count", on_truncation=mode, truncation_penalty=-2.0, gamma=1.0)
    for cut, (end, last) in ((True, (ends, paid)), (False, (1, 5.0))):
        env = Count(cut=cut)
        rollout = collector_of(lambda cut=cut: Count(cut=cut), made).collect(Actor(env), 0)
        assert rollout.rewards.tolist() == [[1, 2, 3, 4, last, 1, 2, 3]]
        assert rollout.terminated.int().tolist() == [[0, 0, 0, 0, end, 0, 0, 0]]
        assert rollout.boundary.int().tolist() == [[0, 0, 0, 0, 1, 0, 0, 1]]
        # The law: the return of the last step counts the state after it, or nothing.
        plain = replace(made.ppo, whiten_advantages=False)
        returns = make_experience(rollout, plain).returns[:, 0]
        assert float(returns[4]) == pytest.approx(last + (0 if end else 1005))
        assert float(returns[7]) == pytest.approx(3 + 1003)


def test_whole_episodes_of_steps_cannot_be_left_out():
    with pytest.raises(ConfigError, match="its first steps were learned from already"):
        read([], {"run.kind": "control", "ppo.on_truncation": "mask"})


def test_actions_are_clipped_for_the_environment_but_kept_as_drawn():
    actor = Actor(pendulum())
    with torch.no_grad():
        actor.policy_module.head.log_std.fill_(3.0)
    seen = []

    class Spy(gymnasium.Wrapper):
        def step(self, action):
            seen.append(action)
            return super().step(action)

    rollout = collector_of(lambda: Spy(pendulum()), settings(1)).collect(actor, 0)
    drawn = rollout.inputs.actions[0].numpy()

    assert np.abs(drawn).max() > 2
    np.testing.assert_array_equal(np.stack(seen), np.clip(drawn, -2, 2))
    assert seen[0].dtype == np.float32
    inputs = ControlInputs(obs=rollout.inputs.obs, actions=rollout.inputs.actions)
    torch.testing.assert_close(rollout.logprobs, actor.logprobs(inputs, rollout.response_mask))


def test_a_row_does_not_depend_on_the_number_of_ranks():
    actor, made = Actor(cartpole()), settings(4)
    whole = collector_of(cartpole, made).collect(actor, 3)

    for rank in (0, 1):
        part = collector_of(cartpole, made, World(rank=rank, size=2), 2).collect(actor, 3)
        rows = part.index
        assert rows.tolist() == [2 * rank, 2 * rank + 1]
        assert torch.equal(part.inputs.obs, whole.inputs.obs[rows])
        assert torch.equal(part.inputs.actions, whole.inputs.actions[rows])


def test_iterations_and_environments_differ():
    actor = Actor(cartpole())
    collector = collector_of(cartpole, settings())
    first, second = collector.collect(actor, 0), collector.collect(actor, 1)

    assert not torch.equal(first.inputs.actions, second.inputs.actions)
    assert not torch.equal(first.inputs.obs[0], first.inputs.obs[1])


def drafts():
    """Pays by a running speed, which it remembers over episodes."""
    return Speculative(made_trace(1, sequences=4, length=12))


@pytest.mark.parametrize("make", [cartpole, pendulum, drafts])
def test_a_collector_goes_on_in_the_middle_of_its_episodes_bit_for_bit(make, tmp_path):
    actor, made = Actor(make()), settings(3, 17, reward_normalize="running")
    straight = collector_of(make, made)
    straight.collect(actor, 0)
    straight.collect(actor, 1)
    write_state(straight.state_dict(), tmp_path, "state")
    state = read_state(tmp_path, "state")
    wanted = straight.collect(actor, 2)

    resumed = collector_of(make, made)
    resumed.load_state_dict(state)
    got = resumed.collect(actor, 2)

    assert any(len(slot["actions"]) for slot in state["slots"])
    for name in ("obs", "actions"):
        assert torch.equal(getattr(got.inputs, name), getattr(wanted.inputs, name))
    assert torch.equal(got.rewards, wanted.rewards)
    assert torch.equal(got.boundary, wanted.boundary)
    np.testing.assert_equal(resumed.state_dict(), straight.state_dict())
    assert make is not drafts or state["slots"][0]["memory"][0]["speed"] != 1.0
    ours, theirs = (one.metrics().values() for one in (resumed, straight))
    same = {"objective/scores", "objective/entropy", "train/episodes", "rewards/running_std"}
    same &= set(theirs)
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


class Shipped(list):
    """Counts the actions that ranks send one another."""

    def __call__(self, news):
        self.append(sum(len(slot["actions"]) for _, slot in news))
        return [news]


def test_an_episode_that_never_ends_costs_every_rollout_the_same(monkeypatch):
    shipped = Shipped()
    monkeypatch.setattr("trainers.collect.control.gather", shipped)
    copies = []
    collector = collector_of(lambda: Count(10**9), settings(2, 16))
    actor = Actor(Count())
    grown = set()
    for iteration in range(64):
        collector.collect(actor, iteration)
        grown |= {id(slot["actions"].base) for slot in collector.state_dict()["slots"]}
        copies.append(collector.state_dict())
    assert shipped[1:] == [2 * 16] * 64
    assert len(grown) <= 2 * math.ceil(math.log2(64) + 1)  # an array anew when it has doubled
    # What was returned earlier is as it was, and what is returned now is all of it.
    for iteration, state in enumerate(copies):
        for slot, last in zip(state["slots"], copies[-1]["slots"], strict=True):
            count = 16 * (iteration + 1)
            assert slot["actions"].tolist() == last["actions"][:count].tolist()
            assert len(slot["actions"]) == count


def test_metrics_are_of_the_episodes_that_ended():
    actor = Actor(Count())
    collector = collector_of(lambda: Count(5, cut=True), settings(2, 12, "Count"))
    rollout = collector.collect(actor, 0)
    figures = collector.metrics().values()

    assert figures["objective/scores"] == figures["env/Count/reward"] == 15
    assert figures["objective/scores_std"] == 0
    assert figures["env/Count/length"] == 5
    assert figures["env/Count/terminated_frac"] == 0
    assert figures["env/Count/truncated_frac"] == 1
    assert figures["train/episodes"] == 4
    entropy = -float(rollout.logprobs[:, :10].sum()) / 4
    assert figures["objective/entropy"] == pytest.approx(entropy)
    assert figures["perf/steps_per_s"] == pytest.approx(figures["perf/samples_per_s"] * 24 / 4)
    assert "perf/tokens_per_s" not in figures

    open_ended = rollout.logprobs[:, 10:]
    rollout = collector.collect(actor, 1)
    figures = collector.metrics().values()
    assert figures["train/episodes"] == 8
    entropy = -float(open_ended.sum() + rollout.logprobs[:, :8].sum()) / 4
    assert figures["objective/entropy"] == pytest.approx(entropy)


def test_a_rollout_in_which_no_episode_ends_reports_no_score():
    collector = collector_of(lambda: Count(50), settings(1, 3, "Count"))
    collector.collect(Actor(Count()), 0)

    assert not {"objective/scores", "env/Count/reward"} & collector.metrics().values().keys()


def test_rewards_are_clipped_then_scaled_and_scores_are_not():
    made = settings(1, 5, "Count", reward_clip=3.0, reward_scale=0.5)
    collector = collector_of(Count, made)
    rollout = collector.collect(Actor(Count()), 0)

    assert rollout.rewards.tolist() == [[0.5, 1.0, 1.5, 1.5, 1.5]]
    assert collector.metrics().values()["objective/scores"] == 15


def test_observations_that_are_no_box_are_flattened():
    envs = make_envs(lambda: gymnasium.make("FrozenLake-v1"), 2)

    assert envs[0].observation_space.shape == (16,)
    made = settings(2, 6, "FrozenLake-v1")
    rollout = ControlCollector(envs, made, World()).collect(Actor(envs[0]), 0)
    assert rollout.inputs.obs.shape == (2, 6, 16)
    assert (rollout.inputs.obs.sum(-1) == 1).all()


def test_values_of_the_critic_are_of_the_observations():
    actor = Actor(cartpole(), critic=True)
    rollout = collector_of(cartpole, settings()).collect(actor, 0)

    again = actor.critic(rollout.inputs)
    torch.testing.assert_close(rollout.values, again.detach())
    inside = ~rollout.boundary[:, :-1]
    torch.testing.assert_close(
        rollout.next_values[:, :-1][inside], rollout.values[:, 1:][inside], atol=1e-6, rtol=1e-6
    )
