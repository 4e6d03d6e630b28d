"""Running statistics of rewards in a run: what they learn from, and what a checkpoint keeps."""

import pytest
import torch

from llmgym.env import SingleTurnEnv
from llmgym.messages import Score
from llmgym.rewards.base import Reward
from llmgym.rewards.scale import Scale
from llmgym.vector import LLMVectorEnv
from tests.unit.trainers.collect.tiny import (
    Actor,
    chat_format,
    collector_of,
    config,
    policy,
    tasks,
    written_by,
)
from trainers.distributed.collectives import World


class Lengths(Reward):
    """The length of a response, normalized by all earlier rollouts."""

    name = "lengths"

    def __init__(self):
        self.scale = Scale("running")

    def score(self, samples):
        raw = [float(len(one.text)) for one in samples]
        return [Score(value, {"raw": one})
                for value, one in zip(self.scale.apply(raw), raw, strict=True)]  # fmt: skip


def collector(world=World()):  # noqa: B008 - alone, and frozen
    chat, reward = chat_format(), Lengths()
    actor = Actor(policy(chat))
    envs = LLMVectorEnv([lambda: SingleTurnEnv(tasks(), reward)] * (8 // world.size))
    settings = config(ppo={"num_prompts": 4, "samples_per_prompt": 2})
    generator = written_by(actor.policy_module, chat)
    return collector_of(chat, envs, generator, settings, world=world), actor, reward


def raw(collector):
    return torch.tensor([row["raw"] for row in collector.samples()], dtype=torch.float64)


def rewards(collector):
    return [row["reward"] for row in collector.samples()]


def test_a_rollout_is_scored_by_the_rollouts_before_it_alone():
    made, actor, reward = collector()
    made.collect(actor, 0)
    first = raw(made)
    assert rewards(made) == pytest.approx(first.tolist())
    reward.scale.apply([1e6])  # an evaluation between two rollouts
    made.collect(actor, 1)
    second = raw(made)
    expected = (second - first.mean()) / first.std(correction=0)
    assert rewards(made) == pytest.approx(expected.tolist(), abs=1e-4)
    both = torch.cat([first, second])
    assert reward.scale.statistics == pytest.approx(
        (float(both.mean()), float(both.std(correction=0)))
    )


def test_a_resumed_collector_goes_on_with_the_same_statistics():
    made, actor, _ = collector()
    made.collect(actor, 0)
    other, _, _ = collector()
    other.load_state_dict(made.state_dict())
    for one in (made, other):
        one.collect(actor, 1)
    assert rewards(made) == rewards(other)
    assert raw(made).tolist() != pytest.approx(rewards(made))
