"""An end token that was sampled is an action like any other: it is learned."""

from dataclasses import replace

import torch

from tests import tiny
from tests.unit.trainers.collect.tiny import (
    Actor,
    chat_format,
    collector_of,
    config,
    length_score,
    policy,
    scripted,
    single_turn,
)
from trainers.ppo import make_experience, update


def test_an_end_token_has_a_policy_gradient_and_becomes_likelier():
    chat = chat_format()
    end = chat.end_token_id
    script = {row: [(*range(60, 60 + row), end)] for row in range(4)}
    settings = config(ppo={"learning_rate": 1e-3})
    acting = policy(chat)
    envs = single_turn(length_score)
    collector = collector_of(chat, envs, scripted(chat, script), settings)
    made = make_experience(collector.collect(Actor(acting), 0), settings.ppo)

    # Only the end tokens earn something: without them in the mask nothing is learned.
    ends = made.inputs.actions.eq(end) & made.response_mask
    assert ends.sum(1).tolist() == [1, 1, 1, 1]
    made = replace(made, advantages=ends.float())
    learner = tiny.learner(settings, model=acting.model)
    blind = replace(made, response_mask=made.response_mask & ~ends)
    assert not any_policy_gradient(learner, blind, settings)
    assert any_policy_gradient(learner, made, settings)

    before = learner.logprobs(made.inputs, made.response_mask)[ends]
    update(learner, made, settings)
    after = learner.logprobs(made.inputs, made.response_mask)[ends]
    assert bool((after > before).all())


def any_policy_gradient(learner, made, settings):
    """Tell whether an update would move the policy."""
    found = tiny.gradients_of(learner, made, settings)
    return any(bool(torch.any(x != 0)) for name, x in found.items() if name.startswith("policy."))
