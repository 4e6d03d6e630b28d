"""Normalized scores, and which rewards remember."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.errors import RewardError
from llmgym.messages import Score
from llmgym.rewards.base import Reward
from llmgym.rewards.compose import ByTask, Gate, Sum
from llmgym.rewards.rules import Constant
from llmgym.rewards.scale import Scale, running_scales
from llmgym.rewards.transforms import Cached, GroupRank, Timed


class Scaling(Reward):
    """The length of a response, normalized."""

    name = "scaling"

    def __init__(self, mode="running"):
        self.scale = Scale(mode)

    def score(self, samples):
        values = self.scale.apply([float(len(one.text)) for one in samples])
        return [Score(value) for value in values]


SCORES = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@given(SCORES, SCORES)
def test_running_statistics_are_those_of_all_earlier_rollouts(first, second):
    one, other = Scale("running"), Scale("running")
    assert one.apply(first) == pytest.approx(first)
    one.absorb(one.observed())
    one.apply(second)
    one.absorb(one.observed())
    other.apply([*first, *second])
    other.absorb(other.observed())
    both = np.array([*first, *second])
    assert one.statistics == pytest.approx(other.statistics, abs=1e-6)
    mean, std = one.statistics
    assert (mean, std) == pytest.approx((both.mean(), both.std()), abs=1e-4)


def test_a_score_does_not_depend_on_its_batch():
    scale = Scale("running")
    scale.apply([1.0, 5.0, 9.0])
    scale.absorb(scale.observed())
    assert scale.apply([2.0, 7.0]) == [*scale.apply([2.0]), *scale.apply([7.0])]


def test_failed_scores_teach_nothing_and_equal_ones_are_not_blown_up():
    scale = Scale("running")
    scale.apply([float("nan"), float("inf"), 3.0, 3.0])
    assert scale.observed() == (2.0, 6.0, 18.0)
    scale.absorb((2.0, 6.0, 18.0))
    assert scale.apply([3.0, 4.0]) == [0.0, 1.0]


def test_fixed_figures_and_what_they_need():
    assert Scale("fixed", 2.0, 4.0).apply([2.0, 10.0]) == [0.0, 2.0]
    for wrong in (("fixed",), ("fixed", 1.0), ("fixed", 1.0, 0.0), ("none", 1.0, 1.0)):
        with pytest.raises(RewardError, match="mean and std, above 0, belong to normalize fixed"):
            Scale(*wrong)


def test_statistics_survive_a_checkpoint():
    scale, copy = Scale("running"), Scale("running")
    scale.apply([1.0, 4.0])
    scale.absorb(scale.observed())
    copy.load_state_dict(scale.state_dict())
    assert copy.apply([2.0, 3.0]) == scale.apply([2.0, 3.0])


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda inner: inner, "scaling"),
        (lambda inner: Sum(kind=(inner, 0.5), rule=(Constant(), 1.0)), "kind"),
        (lambda inner: Gate(Constant(value=1.0), inner), "then"),
        (lambda inner: Gate(inner, Constant()), "when"),
        (lambda inner: ByTask({"here": inner}), "here"),
        (lambda inner: ByTask({}, default=inner), "default"),
        (lambda inner: GroupRank(inner), "scaling"),
        (lambda inner: Sum(all=(Timed(Cached(inner)), 1.0)), "all.scaling.scaling"),
    ],
)
def test_statistics_are_found_wherever_a_reward_is(wrap, name):
    inner = Scaling()
    assert running_scales(wrap(inner)) == {name: inner.scale}
    assert running_scales(wrap(Scaling("none"))) == {}
    assert running_scales(None) == {}
