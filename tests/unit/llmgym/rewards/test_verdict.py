"""What a reward may return, and how messages name the line, the response and the failure."""

import inspect
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.errors import RewardError
from llmgym.messages import Score
from llmgym.rewards.base import per_sample, score_samples
from llmgym.rewards.function import from_function
from tests.unit.llmgym.samples import Returns, sample

WRONG = [None, "1.0", [1.0], np.array([1.0]), 1j, np.complex128(1), {}, {"a": None}, {"a": "1"}]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_verdict_of_the_wrong_type_is_a_broken_reward_naming_line_and_response(value):
    reward = Returns([0.0, value])
    place = rf"samples\.py:{line_of(Returns)} returns\(\)"
    with pytest.raises(RewardError, match=rf"{place} returned .* for the response 'b' to 'What\?'"):
        score_samples(reward, [sample("a"), sample("b")])
    assert len(reward.calls) == 1, "a broken reward is not retried"


def test_none_is_named_with_its_remedy():
    with pytest.raises(RewardError, match=r'None for the.*Score\(0.0, status="abstain"\)'):
        score_samples(Returns([None]), [sample("a")])


def test_a_plain_function_is_named_with_its_own_line():
    def silent(response):
        return "a text"

    with pytest.raises(
        RewardError, match=rf"test_verdict\.py:{line_of(silent)} silent\(\) returned"
    ):
        score_samples(from_function(silent), [sample("a")])
    with pytest.raises(
        RewardError, match=rf"test_verdict\.py:{line_of(silent)} silent\(\) returned"
    ):
        score_samples(per_sample(silent), [sample("a")])


def test_what_a_model_wrote_is_shown_by_its_start_and_escaped():
    wild = "\x1b[31mred\n\u202e" + 100 * "y"
    with pytest.raises(RewardError) as failure:
        score_samples(Returns([None]), [sample(wild)])
    assert str(failure.value).isprintable()
    assert "'\\x1b[31mred\\n\\u202e" in str(failure.value)
    assert 30 * "y" not in str(failure.value)


def test_what_an_exception_says_is_bounded_printable_and_leads_to_the_users_line():
    def parse(response):
        json.loads("")

    def quote(response):
        raise ValueError(response)

    assert score(parse, "a").error.endswith(f"test_verdict.py:{line_of(parse) + 1}")
    said = score(quote, "\x1b[31m" + 10_000 * "y").error
    assert said.isprintable()
    assert len(said.partition(" at ")[0]) < 250


def score(fn, response):
    return score_samples(from_function(fn), [sample(response)], retries=0)[0]


def line_of(what):
    return inspect.getsourcelines(what)[1]


@pytest.mark.parametrize("result", [None, 1.0, "ab", {0: 1.0, 1: 2.0}, np.zeros((2, 1))])
def test_a_result_that_is_no_list_is_a_broken_reward(result):
    where = rf"samples\.py:{line_of(Returns)} returns\.score\(\) returned .*response 'a'"
    with pytest.raises(RewardError, match=rf"{where}.*Return a list"):
        score_samples(Returns(result), [sample("a")] * 2)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_length_names_both_counts(count):
    says = f"returned {count} values for 2 samples, the first for the response 'a'"
    with pytest.raises(RewardError, match=says):
        score_samples(Returns([0.0] * count), [sample("a")] * 2)


NOT_FINITE = [math.nan, math.inf, -math.inf, 10**400, {"a": math.nan, "b": 1.0}]


@pytest.mark.parametrize("bad", NOT_FINITE, ids=["nan", "inf", "-inf", "huge", "part"])
def test_a_score_that_is_not_finite_is_an_error_and_a_finite_zero(bad):
    good, failed = score_samples(Returns([1.0, bad]), [sample("a"), sample("b")])
    assert good == Score(1.0)
    assert (failed.value, failed.status) == (0.0, "error")
    assert "not finite" in failed.error


def test_a_status_that_does_not_exist_is_refused_and_never_a_zero():
    with pytest.raises(RewardError, match=r"'failed' for the response 'a'.*ok, abstain, error"):
        score_samples(Returns([Score(0.0, status="failed")]), [sample("a")])


def test_what_abstains_or_failed_is_worth_nothing_whatever_it_carries():
    carried = {"spans": ((0, 1, 5.0),), "value": math.nan}
    abstains, failed = score_samples(
        Returns([Score(status="abstain", **carried), Score(status="error", **carried)]),
        [sample("a")] * 2,
    )
    assert abstains == Score(0.0, status="abstain")
    assert failed == Score(0.0, status="error", error="returns() gave no reason")


def test_a_span_that_is_not_finite_is_an_error_and_one_of_numpy_becomes_plain():
    bad = Score(1.0, spans=((0, 1, math.nan),))
    good = Score(1.0, spans=((0, 1, np.float32(0.5)),))
    failed, fine = score_samples(Returns([bad, good]), [sample("a")] * 2)
    assert (failed.value, failed.status) == (0.0, "error")
    assert type(fine.spans[0][2]) is float


@pytest.mark.parametrize(
    "spans", [((0, 1),), ((0.5, 1, 1.0),), ((None, 1, 1.0),), 3, ((0, 1, "a"),)]
)
def test_spans_of_another_form_are_a_broken_reward(spans):
    with pytest.raises(RewardError, match=r"returns\(\) returned .* for the response 'a'"):
        score_samples(Returns([Score(1.0, spans=spans)]), [sample("a")])


def test_what_a_score_carries_becomes_plain_so_that_it_travels():
    carried = Score(1.0, {2: np.float32(1.0)}, spans=((np.int64(0), np.int64(1), 1),))
    failure = Score(0.0, status="error", error=ValueError("no"))
    fine, failed = score_samples(Returns([carried, failure]), [sample("a")] * 2)
    assert json.dumps([fine.parts, fine.spans]) == '[{"2": 1.0}, [[0, 1, 1.0]]]'
    assert failed.error == "no"


def test_parts_that_are_no_dict_are_a_broken_reward():
    with pytest.raises(RewardError, match="returned the parts None for the response 'a'"):
        score_samples(Returns([Score(1.0, None)]), [sample("a")])


def test_abstaining_is_kept_and_is_not_an_error():
    abstains = Score(0.0, status="abstain")
    assert score_samples(Returns([abstains]), [sample("a")]) == [abstains]


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_of_every_kind_are_coerced_exactly(value):
    kinds = [kind(value) for kind in (float, np.float32, np.float64, int)] + [np.int32(-7)]
    scores = score_samples(Returns(kinds), [sample("a")] * len(kinds))
    assert scores == [Score(float(one)) for one in kinds]


def test_numpy_rows_are_accepted():
    assert [s.value for s in score_samples(Returns(np.array([1, 2])), [sample("a")] * 2)] == [1, 2]
