"""Intervals, pairs and means of held-out scores."""

import math
import random

import numpy as np
import pytest
import torch

from llmgym.errors import RewardError
from tests.unit.trainers.evaluation.oracles import wilson
from trainers.errors import ConfigError
from trainers.evaluation.statistics import UNKNOWN, interval, paired, summarize
from trainers.loggers import formatting as lines
from trainers.loggers.base import evaluation_values


@pytest.mark.parametrize(("successes", "number"), [(0, 5), (5, 5), (3, 7), (410, 512)])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 3.0)])
def test_scores_that_all_lie_on_known_bounds_have_wilsons_interval(successes, number, low, high):
    scores = [high] * successes + [low] * (number - successes)
    share = [low + (high - low) * end for end in wilson(successes, number)]
    assert interval(scores, (low, high)) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("bounds", [UNKNOWN, (-1.0, 1.0), (0.0, math.inf), (0.0, 0.5)])
def test_scores_that_happen_to_be_0_and_1_are_no_share(bounds):
    scores = [1.0] * 3 + [0.0] * 4
    low, high = interval(scores, bounds)
    assert 0.0 <= low < 3 / 7 < high <= 1.0
    assert (low, high) != pytest.approx(wilson(3, 7), abs=1e-3)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        low, high = interval(rng.exponential(size=60).tolist())
        hits += low <= 1.0 <= high
    assert 88 <= hits <= 99


def test_equal_scores_give_equal_intervals_whatever_was_drawn_before():
    scores = np.random.default_rng(1).normal(size=30).tolist()
    first = interval(scores)
    random.random()
    torch.rand(3)
    assert interval(scores) == first


@pytest.mark.parametrize("score", [0.25, 0.0, 1.0])
def test_equal_scores_within_bounds_leave_room_for_those_not_seen(score):
    unseen = wilson(0, 40)[1]
    expected = (score * (1 - unseen), score + (1 - score) * unseen)
    assert interval([score] * 40, (0.0, 1.0)) == pytest.approx(expected, abs=1e-12)
    assert interval([score], (0.0, 1.0))[0] <= interval([score] * 40, (0.0, 1.0))[0]
    assert interval([2.0] * 3, (2.0, 2.0)) == (2.0, 2.0)


@pytest.mark.parametrize("scores", [[1.0] * 4, [0.0], [500.0] * 50])
def test_equal_scores_without_bounds_claim_no_certainty(scores):
    found = summarize("e", scores)
    assert math.isnan(found.ci_low)
    assert math.isnan(found.ci_high)
    assert evaluation_values([found]) == {"eval/e/mean": scores[0], "eval/score": scores[0]}
    assert lines.mean_and_interval(found) == f"{scores[0]:.3g} (all equal)"


def test_failed_tasks_count_in_no_mean():
    found = summarize("e", [1.0, math.nan, 0.0, 1.0], bounds=(0.0, 1.0))
    assert found.mean == pytest.approx(2 / 3)
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson(2, 3))
    assert len(found.scores) == 4


def test_no_score_at_all_is_an_error():
    with pytest.raises(RewardError, match="none of 2 tasks has a score"):
        summarize("e", [math.nan, math.nan])


def test_pairing_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(2)
    hardness = rng.normal(size=200)
    ours, theirs = hardness + 0.1 + 0.01 * rng.normal(size=200), hardness
    difference, low, high = paired(ours.tolist(), theirs.tolist())
    assert low < difference < high
    assert low > 0.09
    assert high < 0.11
    assert interval(theirs.tolist())[1] > interval(ours.tolist())[0]


def test_pairing_leaves_out_a_task_that_failed_on_either_side():
    difference, _, _ = paired([1.0, math.nan, 1.0], [0.0, 0.0, math.nan])
    assert difference == 1.0


def test_pairing_needs_the_same_tasks():
    with pytest.raises(ConfigError, match="got 2 and 3 scores"):
        paired([1, 2], [1, 2, 3])
