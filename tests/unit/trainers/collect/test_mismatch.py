"""A generator that is not exact: old log-probabilities are the trainer's, the gap is bounded."""

from dataclasses import replace

import pytest
import torch

from tests.unit.trainers.collect import tiny
from trainers.config import GenerationConfig
from trainers.errors import MismatchError
from trainers.generation.base import Generator

SHIFT = 0.25


class Shifted(Generator):
    """Writes exactly, and reports log-probabilities that are off by SHIFT."""

    exact = False

    def __init__(self, inner):
        self.inner = inner

    @property
    def policy_version(self):
        return self.inner.policy_version

    def generate(self, requests, sampling):
        return [
            replace(response, logprobs=tuple(figure - SHIFT for figure in response.logprobs))
            for response in self.inner.generate(requests, sampling)
        ]

    def load_weights(self, weights, version):
        self.inner.load_weights(weights, version)

    def sleep(self):
        self.inner.sleep()


def collected(tolerance, **ppo):
    chat = tiny.chat_format()
    settings = tiny.config(ppo=ppo)
    settings = replace(settings, generation=replace(settings.generation, tolerance=tolerance))
    actor = tiny.Actor(tiny.policy(chat))
    generator = Shifted(tiny.written_by(actor.policy_module, chat))
    collector = tiny.collector_of(chat, tiny.single_turn(tiny.length_score), generator, settings)
    return collector, collector.collect(actor, 0)


@pytest.mark.parametrize("tolerance", [SHIFT + 0.01, None])
def test_within_the_tolerance_the_old_logprobs_are_the_trainers(tolerance):
    _, rollout = collected(tolerance, num_epochs=1, num_minibatches=1)
    gap = (rollout.logprobs - rollout.generator_logprobs)[rollout.response_mask]
    assert torch.allclose(gap, torch.full_like(gap, SHIFT), atol=1e-4)


def test_beyond_the_tolerance_the_run_stops_with_both_figures():
    with pytest.raises(MismatchError, match=r"are 0.25 nats per token.*maximum 0.25.*is 0.1"):
        collected(GenerationConfig().tolerance)


def test_logprobs_that_are_no_numbers_are_beyond_every_tolerance(monkeypatch):
    monkeypatch.setattr(f"{__name__}.SHIFT", float("nan"))
    with pytest.raises(MismatchError):
        collected(100.0)
