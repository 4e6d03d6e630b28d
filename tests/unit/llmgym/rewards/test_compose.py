"""Composites with weights other than 1, abstaining and failing parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.errors import RewardError
from llmgym.messages import Score
from llmgym.rewards.base import Reward, per_sample, score_samples
from llmgym.rewards.compose import ByTask, Gate, Max, Min, Product, Sum
from llmgym.rewards.rules import Constant
from llmgym.rewards.transforms import Cached, GroupRank, Timed
from tests.unit.llmgym.samples import sample

LENGTH = per_sample(lambda one: float(len(one.text)), "length")
VOWELS = per_sample(lambda one: {"a": one.text.count("a"), "e": one.text.count("e")}, "vowels")
ABSTAINS = per_sample(lambda one: Score(0.0, status="abstain"), "abstains")


def fails(one):
    raise ValueError("never")


FAILS = per_sample(fails, "fails")


class Turns(Reward):
    """Worth 1 after every turn."""

    name = "turns"
    per_turn = True

    def score(self, samples):
        return [1.0] * len(samples)


def one(reward, response="", **kwargs):
    return score_samples(reward, [sample(response, **kwargs)])[0]


def test_a_sum_weighs_its_parts_and_logs_them_weighted_and_not():
    score = one(Sum(length=(LENGTH, 0.5), vowels=(VOWELS, -2.0)), "banane")
    assert score.value == 0.5 * 6 - 2.0 * 3
    assert score.parts == {
        "length": 6.0,
        "length.weighted": 3.0,
        "vowels": 3.0,
        "vowels.a": 2.0,
        "vowels.e": 1.0,
        "vowels.weighted": -6.0,
    }


def flaky():
    """Return a reward whose first call raises; the second is worth 1."""
    answers = iter([ValueError("once")])

    def score(one):
        for error in answers:
            raise error
        return 1.0

    return per_sample(score, "flaky")


def test_repeated_calls_of_parts_are_counted():
    assert one(LENGTH).retries == one(Sum(length=(LENGTH, 1.0))).retries == 0
    assert one(Sum(flaky=(flaky(), 1.0), length=(LENGTH, 1.0))).retries == 1
    assert one(Sum(deep=(Sum(flaky=(flaky(), 1.0)), 1.0), other=(flaky(), 1.0))).retries == 2
    assert one(Gate(when=flaky(), then=flaky(), threshold=0.5)).retries == 2
    assert one(Gate(when=flaky(), then=LENGTH, threshold=2.0)).retries == 1
    assert one(Sum(flaky=(flaky(), 1.0), fails=(FAILS, 1.0))).retries == 3, "1, and 2 of the other"


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=4))
def test_a_sum_of_sums_keeps_every_weight(pairs):
    inner = {f"p{i}": (Constant(value=value), weight) for i, (value, weight) in enumerate(pairs)}
    outer = Sum(inner=(Sum(**inner), 3.0), bias=(Constant(value=1.0), -1.0))
    assert one(outer).value == 3.0 * sum(value * weight for value, weight in pairs) - 1.0


def test_product_min_and_max():
    parts = {"x": Constant(value=2.0), "y": Constant(value=-3.0)}
    assert one(Product(**parts)).value == -6.0
    assert one(Min(**parts)).value == -3.0
    assert one(Max(**parts)).value == 2.0
    assert one(Max(**parts)).parts == {"x": 2.0, "y": -3.0}


def test_an_abstaining_part_is_left_out_or_counts_as_zero():
    assert one(Min(a=ABSTAINS, c="constant", d=Constant(value=5.0))).value == 0.0
    assert one(Product(a=ABSTAINS, d=Constant(value=5.0))) == Score(5.0, {"d": 5.0})
    assert one(Product(a=ABSTAINS, d=Constant(value=5.0), on_abstain="zero")).value == 0.0
    assert one(Sum(a=(ABSTAINS, 1.0))).status == "abstain"
    assert one(Sum(a=(ABSTAINS, 1.0), on_abstain="zero")).status == "ok"


def test_a_failed_part_makes_the_sample_invalid_or_stops():
    score = one(Sum(good=(LENGTH, 1.0), bad=(FAILS, 0.1)), "abc")
    assert (score.value, score.status) == (0.0, "error")
    assert score.error.startswith("bad: ValueError: never")
    with pytest.raises(RewardError, match=r"a part of sum failed. bad"):
        one(Sum(bad=(FAILS, 1.0), on_error="raise"))


def test_a_composite_is_per_turn_if_a_part_is_and_the_others_wait_for_the_end():
    reward = Sum(turns=(Turns(), 0.5), length=(LENGTH, 1.0))
    assert reward.per_turn
    assert one(reward, "abc", over=False).value == 0.5
    assert one(reward, "abc", over=True).value == 3.5
    assert not Sum(length=(LENGTH, 1.0)).per_turn


def test_a_sum_moves_its_parts_spans_by_their_weights():
    spanned = per_sample(lambda one: Score(1.0, spans=((0, 2, 4.0),)), "spanned")
    assert one(Sum(s=(spanned, 0.5))).spans == ((0, 2, 2.0),)


def test_a_gate_asks_only_about_what_passes():
    asked = []

    def worth(one):
        asked.append(one.text)
        return 7.0

    gate = Gate(LENGTH, per_sample(worth, "worth"), threshold=2.0, floor=-1.0)
    scores = score_samples(gate, [sample("a"), sample("ab")])
    assert [score.value for score in scores] == [-1.0, 7.0]
    assert scores[0].parts == {"length": 1.0}
    assert scores[1].parts == {"length": 2.0, "worth": 7.0}
    assert asked == ["ab"]
    assert one(Gate(FAILS, LENGTH)).status == "error"


def test_by_task_routes_by_source_and_calls_each_reward_once():
    calls = []

    class Recorded(Reward):
        name = "recorded"

        def score(self, samples):
            calls.append([one.text for one in samples])
            return [1.0] * len(samples)

    rows = [sample(text, source=text[0]) for text in ("m1", "c1", "m2", "x1")]
    scores = score_samples(ByTask({"m": Recorded(), "c": Constant(value=5.0)}), rows)
    assert [score.value for score in scores] == [1.0, 5.0, 1.0, 0.0]
    assert [score.status for score in scores] == ["ok", "ok", "ok", "abstain"]
    assert calls == [["m1", "m2"]]
    assert score_samples(ByTask({}, default=Constant(value=2.0)), rows)[3].value == 2.0


def test_group_rank_ranks_within_groups_and_shares_ties():
    rows = [("aaa", 0), ("a", 0), ("aa", 0), ("a", 1), ("a", 1), ("aa", 1)]
    scores = score_samples(GroupRank(LENGTH), [sample(text, group=group) for text, group in rows])
    assert [score.value for score in scores] == [1.0, 0.0, 0.5, 0.25, 0.25, 1.0]


def test_group_rank_leaves_failures_out_and_refuses_a_group_of_one():
    def worth(one):
        return fails(one) if one.text == "bad" else float(len(one.text))

    rows = [sample(text) for text in ("a", "bad", "aa")]
    scores = score_samples(GroupRank(per_sample(worth, "worth")), rows)
    assert [(score.value, score.status) for score in scores] == [
        (0.0, "ok"),
        (0.0, "error"),
        (1.0, "ok"),
    ]
    with pytest.raises(RewardError, match="samples_per_prompt to 2 or more"):
        score_samples(GroupRank(LENGTH), [sample("a")])


def test_cached_asks_once_for_equal_samples_and_again_after_a_failure():
    calls = []

    def worth(one):
        calls.append(one.text)
        if one.text == "bad":
            raise ValueError("down")
        return float(len(one.text))

    reward = Cached(per_sample(worth, "worth"), size=2)
    rows = [sample("a"), sample("aa"), sample("a")]
    assert [score.value for score in score_samples(reward, rows)] == [1.0, 2.0, 1.0]
    assert [score.value for score in score_samples(reward, rows)] == [1.0, 2.0, 1.0]
    assert sorted(calls) == ["a", "aa"]
    score_samples(reward, [sample("bad")])
    before = len(calls)
    score_samples(reward, [sample("bad")])
    assert len(calls) > before
    score_samples(reward, [sample(text) for text in ("x", "y", "z")])
    assert one(reward, "a").value == 1.0
    assert calls[-1] == "a", "the oldest went first"


def test_what_is_remembered_was_not_repeated_again():
    failures = iter([OSError("down"), None])

    def worth(one):
        if failure := next(failures):
            raise failure
        return 1.0

    reward = Cached(per_sample(worth, "worth"))
    assert [one(reward, "a").retries for _ in range(2)] == [1, 0]


def test_a_cache_tells_tasks_apart_by_all_of_their_columns():
    reward = Cached(per_sample(lambda one: float(one.task.meta["bonus"]), "bonus"))
    rows = [sample("a", bonus=1), sample("a", bonus=2)]  # one prompt, hence one id
    assert [score.value for score in score_samples(reward, rows)] == [1.0, 2.0]


def test_timed_adds_milliseconds_and_changes_nothing_else():
    score = one(Timed(LENGTH), "abc")
    assert score.value == 3.0
    assert score.parts["ms"] >= 0.0


def test_composites_refuse_what_they_cannot_hold():
    class Collective(Reward):
        name, collective = "collective", True

        def score(self, samples):
            return [0.0] * len(samples)

    with pytest.raises(RewardError, match="no part may be collective"):
        Gate(Collective(), LENGTH)
    with pytest.raises(RewardError, match="no part may be collective"):
        ByTask({"m": Collective()})
    with pytest.raises(RewardError, match="per_turn"):
        GroupRank(Turns())
    with pytest.raises(RewardError, match="needs one part"):
        Sum()
    with pytest.raises(RewardError, match='on_abstain is "skip" or "zero"'):
        Sum(a=(LENGTH, 1.0), on_abstain="never")
    assert Sum(a=(Collective(), 1.0)).collective
