"""Evaluation on numeric environments: episodes of seeds, shared by ranks."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from trainers.distributed.collectives import World
from trainers.evaluation import control as control_evaluation
from trainers.evaluation.control import evaluate_control
from trainers.models.mlp import PolicyMLP


class Count(gymnasium.Env):
    """Pays 1 a step for `seed % 7 + 1` steps; the seeds it was given are kept."""

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)
    seeds: list[int] = []  # noqa: RUF012 - shared on purpose

    def reset(self, *, seed=None, options=None):
        self.left = seed % 7 + 1
        self.seeds.append(seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, self.left == 0, False, {}


def policy(space):
    return PolicyMLP(2, space, hidden_sizes=[4], rng=torch.Generator().manual_seed(0))


def control(num_episodes, world=None, make=Count, seed=0):
    return evaluate_control(
        policy(make().action_space),
        make,
        env="Count",
        num_episodes=num_episodes,
        seed=seed,
        world=world or World(),
    )


@pytest.mark.parametrize("num_episodes", [1, 16, 21])
def test_returns_are_those_of_the_seeds(num_episodes):
    Count.seeds.clear()
    found = control(num_episodes)
    assert found.scores == tuple(seed % 7 + 1 for seed in Count.seeds)
    assert len(set(Count.seeds)) == num_episodes


def test_another_seed_plays_other_episodes():
    assert control(16).scores == control(16).scores
    assert control(16).scores != control(16, seed=1).scores


def test_ranks_share_the_episodes(monkeypatch):
    whole = control(5).scores
    parts = []
    monkeypatch.setattr(control_evaluation, "gather", lambda mine: parts.append(mine) or [mine])
    for rank in range(2):
        control(5, World(rank=rank, size=2))
    merged = {**parts[0], **parts[1]}
    assert tuple(merged[i] for i in range(5)) == whole
    assert not parts[0].keys() & parts[1].keys()


class Bounded(Count):
    """Takes numbers in a narrow range."""

    action_space = Box(np.float32(-0.001), np.float32(0.001), (3,))


def test_continuous_actions_are_clipped_to_the_space():
    assert control(2, make=Bounded).scores
