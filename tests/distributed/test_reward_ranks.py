"""Reward models on two ranks: shards that must all take part, statistics of all ranks' scores."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from llmgym.rewards.base import score_samples
from llmgym.rewards.model import RewardModel
from tests.distributed.ranks import run_ranks
from tests.judges import RESPONSES, bert, said
from tests.unit.trainers.collect.test_reward_statistics import collector
from trainers.distributed.collectives import World

SAMPLES = [said(one) for one in RESPONSES]
HEAD = "logit[good]"


def judged(folder, counts):
    """Score this rank's share with a model that stops where a rank is missing; count the calls."""
    rank = World.from_launcher().rank
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    calls = 0

    def forward(ids, mask):
        nonlocal calls
        calls += 1
        here = torch.ones(1)
        torch.distributed.all_reduce(here)
        assert here.item() == 2
        return model(input_ids=ids, attention_mask=mask).logits

    reward = RewardModel(folder, head=HEAD, forward=forward, batch_size=2)
    mine = SAMPLES[: counts[rank]]
    values = [[score.value for score in score_samples(reward, mine)] for _ in range(2)]
    return values, calls


@pytest.mark.parametrize("counts", [(7, 0), (1, 6)])
def test_every_rank_calls_a_sharded_model_equally_often_and_scores_its_own(tmp_path, counts):
    folder = bert(tmp_path / "rm")
    expected = [one.value for one in score_samples(RewardModel(folder, head=HEAD), SAMPLES)]
    found = run_ranks(judged, str(folder), counts)
    probes, batches = 2, -(-max(counts) // 2)
    assert found[0][1] == found[1][1] == probes + 2 * batches
    for count, (values, _) in zip(counts, found, strict=True):
        for once in values:
            np.testing.assert_allclose(once, expected[:count], atol=1e-5)


def statistics():
    """Two rollouts of this rank's share, and the statistics after each."""
    world = World.from_launcher()
    made, actor, reward = collector(world)
    seen = []
    for iteration in range(2):
        made.collect(actor, iteration)
        seen += reward.scale.statistics
    return seen


def test_statistics_are_those_of_all_ranks():
    one, other = run_ranks(statistics)
    assert one == other
    assert one == pytest.approx(statistics())
