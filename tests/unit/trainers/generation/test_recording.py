"""A recorded trace, replayed, is what decoding with the two models does."""

import numpy as np
import pytest
import torch

from llmgym.envs.speculative import Speculative
from llmgym.speculative.replay import fixed, replay
from tests.unit.trainers.generation.test_drafting import ENDS, requests, write
from tests.unit.trainers.generation.test_transformers_generator import generator, llama
from trainers.generation.base import Sampling
from trainers.generation.drafting import fixed_length
from trainers.generation.recording import measure_times, record_trace


@pytest.fixture(scope="module")
def models():
    target = llama().eval()
    torch.manual_seed(5)
    drafter = llama().eval()
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return target, drafter


@pytest.fixture(scope="module")
def trace(models):
    return record_trace(*models, requests(12), ends=ENDS, longest=4)


def test_the_text_is_the_targets_own(models, trace):
    plain = generator(models[0]).generate(requests(12), Sampling(greedy=True))
    assert np.diff(trace.starts).tolist() == [len(row.token_ids) for row in plain]


@pytest.mark.parametrize("length", [0, 1, 3, 4])
def test_a_replay_makes_the_cycles_of_decoding(models, trace, length):
    done = [write(*models, request, fixed_length(length)) for request in requests(12)]
    played = replay(trace, fixed(length))
    assert played.cycles == sum(row.cycles for row in done)
    assert played.tokens == sum(len(row.token_ids) for row in done)


def test_observations_of_a_replay_are_those_of_decoding(models, trace):
    """The first cycle of a row, token by token."""
    request, seen = requests(12)[7], []

    def rule(view):
        seen.append(view.observation())
        return view.depth < 4

    write(*models, request, rule)
    env = Speculative(trace, form="token")
    played = [env.reset(options={"index": 7})[0]]
    played += [env.step(1)[0] for _ in range(3)]
    costs = slice(-2, None)  # those of the trace are measured
    for ours, theirs in zip(played, seen, strict=False):
        np.testing.assert_allclose(ours[: costs.start], theirs[: costs.start], atol=1e-3)


def test_times_are_of_every_number_of_tokens(models):
    draft, verify = measure_times(*models, [3, 4, 5], 3)
    assert draft > 0
    assert len(verify) == 4
    assert min(verify) > 0
