"""Tolerances follow the type and the size of scores; messages show the digits that differ."""

import numpy as np
import pytest

from llmgym.rewards.base import per_sample
from llmgym.rewards.compose import Sum
from llmgym.rewards.rounding import BFLOAT16, EXACT, FLOAT32, told_apart, tolerance
from tests.unit.llmgym.samples import Returns


class Judge(Returns):
    """A reward that says it computes in bfloat16."""

    rounding = BFLOAT16


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        ([0.1, 0.7], EXACT),  # no float32 is 0.1
        ([float(np.float32(0.1)), 2.0], FLOAT32),
        ([0.0, 1.0, -0.5], EXACT),  # short figures are those of a rule
        ([3.0, float("nan"), float("inf")], EXACT),
        ([], EXACT),
    ],
)
@pytest.mark.parametrize("size", [1.0, 2.0**-30, 2.0**20])
def test_a_tolerance_is_a_share_of_the_largest_score(scores, share, size):
    finite = [abs(one) for one in scores if np.isfinite(one)]
    assert tolerance([size * one for one in scores]) == share * size * max(finite, default=0.0)


def test_a_part_that_states_its_rounding_decides_for_the_whole():
    exact, judge = per_sample(lambda sample: 0.1), Judge([0.0])
    assert tolerance([0.1], exact) == pytest.approx(0.1 * EXACT)
    assert tolerance([0.1], judge) == pytest.approx(0.1 * BFLOAT16)
    assert tolerance([0.1], Sum(rule=(exact, 1.0), judge=(judge, 0.5))) == tolerance([0.1], judge)


def test_two_figures_are_shown_in_digits_that_differ():
    assert told_apart(1.0, 2.0) == ("1", "2")
    assert told_apart(-1.26681, -1.2668112) == ("-1.26681", "-1.266811")
    assert told_apart(0.1, np.nextafter(0.1, 1.0)) == (
        "0.10000000000000001",
        "0.10000000000000002",
    )
    assert told_apart(0.5, 0.5) == ("0.5", "0.5")
