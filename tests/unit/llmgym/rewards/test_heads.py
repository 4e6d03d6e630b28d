"""What is read off a classifier's outputs, against float64 written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmgym.errors import RewardError
from llmgym.rewards.heads import column_of, read_head

LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-30, 30))


@given(LOGITS, st.integers(0, 2))
def test_heads_are_the_probabilities_of_a_softmax(logits, column):
    odds = np.exp(logits - logits.max(1, keepdims=True))
    expected = odds[:, column] / odds.sum(1)
    np.testing.assert_allclose(read_head("softmax[0]", logits, column), expected, atol=1e-12)
    log_odds = read_head("log_odds[0]", logits, column)
    np.testing.assert_allclose(1 / (1 + np.exp(-log_odds)), expected, atol=1e-12)
    sigmoid = 1 / (1 + np.exp(-logits[:, column]))
    np.testing.assert_allclose(read_head("sigmoid[0]", logits, column), sigmoid, atol=1e-12)
    np.testing.assert_array_equal(read_head("logit[0]", logits, column), logits[:, column])


@given(LOGITS, st.floats(-50, 50))
def test_probabilities_do_not_depend_on_what_all_outputs_share(logits, shift):
    for head in ("softmax[1]", "log_odds[1]"):
        moved = read_head(head, logits + shift, 1)
        np.testing.assert_allclose(moved, read_head(head, logits, 1), atol=1e-9)


def test_outputs_far_out_stay_finite():
    far = np.array([[900.0, -900.0], [-900.0, 900.0]])
    for head in ("sigmoid[0]", "softmax[0]", "log_odds[0]"):
        assert np.isfinite(read_head(head, far, 0)).all()
    np.testing.assert_array_equal(read_head("softmax[0]", far, 0), [1.0, 0.0])


@pytest.mark.parametrize(
    ("head", "labels", "column"),
    [
        ("logit", ["score"], 0),
        ("sigmoid", ["score"], 0),
        ("logit[positive]", ["negative", "positive"], 1),
        ("log_odds[2]", ["a", "b", "c"], 2),
        ("softmax[1]", ["1", "0"], 0),
        ("softmax[very glad]", ["sad", "very glad"], 1),
    ],
)
def test_a_label_is_found_by_name_or_else_by_number(head, labels, column):
    assert column_of(head, labels, "rm") == column


@pytest.mark.parametrize("head", ["", "logits", "logit[", "logit[]", "softmax 1", "[1]"])
def test_what_is_no_head_is_refused(head):
    with pytest.raises(RewardError, match="there is no head"):
        column_of(head, ["a"], "rm")
