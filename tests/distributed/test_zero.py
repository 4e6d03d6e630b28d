"""Training on DeepSpeed at two ranks against one plain process: the same at every stage.

One launch runs several cases; the tests read what came of it.
"""

import pytest
import torch

from tests import tiny
from tests.distributed import zero
from tests.distributed.ranks import run_ranks
from tests.distributed.zero import PLACES
from tests.resume.trainee import differences

pytestmark = pytest.mark.deepspeed

FEW = [(0, "none"), (2, "none"), (3, "params")]


LEARNS = ["separate", "shared", "lora", "lora shared"]
"""Policy and a separate critic, one trunk, and adapters of either."""


def cases(places, learns, dtype="float32"):
    return [(*place, one, dtype) for one in learns for place in places]


def alone(learns, count, first=0):
    """Figures and weights of plain torch in this process, on all rows at once."""
    config = zero.settings(learns)
    learner = tiny.learner(config)
    figures = zero.updates(learner, config, first + count)
    return figures[first:], zero.full(learner)


def assert_close(got, wanted, tolerance=1e-5):
    assert got.keys() == wanted.keys()
    for name, figure in wanted.items():
        assert abs(got[name] - figure) <= tolerance * max(1, abs(figure)), name


def assert_parity(found, learns, count):
    figures, weights = found
    expected, wanted = alone(learns, count)
    for one, other in zip(figures, expected, strict=True):
        assert_close(one, other)
    assert weights.keys() == wanted.keys()
    worst = max(float((weights[name] - wanted[name]).abs().max()) for name in wanted)
    # Adam moves a weight by up to its rate a step, however small the gradient is, and of a small
    # gradient rounding is a larger share: up to a thousandth, by the order of its sums.
    assert worst < 1e-3 * count * zero.RATES["learning_rate"]


def test_two_ranks_learn_what_one_process_learns_however_rows_are_split():
    chosen = cases(FEW, ["separate"]) + cases([(2, "none"), (3, "params")], ["lora"])
    ranks = run_ranks(zero.trained, chosen, 2, 3, timeout=280)
    for found in ranks:
        for case in chosen:
            assert_parity(found[case], case[2], 2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("splits", [None, 0, 1])
@pytest.mark.parametrize("learns", LEARNS)
def test_every_stage_and_offload_learns_what_one_process_learns(learns, splits):
    chosen = cases(PLACES, [learns])
    ranks = run_ranks(zero.trained, chosen, 10, splits, timeout=1000)
    for found in ranks:
        for case in chosen:
            assert_parity(found[case], learns, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("learns", ["separate", "lora"])
def test_bfloat16_weights_with_float32_masters_start_close_and_go_on_exactly(learns):
    chosen = cases(PLACES, [learns], "bfloat16")
    found, _ = run_ranks(zero.trained, chosen, 1, 0, timeout=400)
    (expected,), _ = alone(learns, 1)
    for case in chosen:  # later steps of Adam drift apart: the first ones follow signs alone
        (figures,), _ = found[case]
        for name in ("policy/grad_norm", "value/grad_norm", "loss/total"):
            assert figures[name] == pytest.approx(expected[name], rel=0.03, abs=0.01), (case, name)
    pairs = [(case, case) for case in chosen]
    for ranks in run_ranks(zero.resumed, pairs, timeout=400):
        for pair in pairs:
            assert_goes_on(ranks[pair], exact=True)


def assert_goes_on(outcome, *, exact):
    (before, after), (one, other), (mine, theirs), _ = outcome
    assert all(torch.equal(before[name], after[name]) for name in before), "as it was saved"
    if exact:
        assert one == other
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    else:
        assert_close(one[0], other[0])
        assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-5


def test_a_state_goes_on_exactly_and_at_another_stage_and_number_of_ranks():
    same = [(case, case) for case in cases([(2, "none"), (3, "params")], ["separate"])]
    same += [(case, case) for case in cases([(3, "none")], ["lora"])]
    other = [(same[1][0], (1, "none", "separate", "float32"))]
    ranks = run_ranks(zero.resumed, same + other, timeout=280)
    for found in ranks:
        for pair in same + other:
            assert_goes_on(found[pair], exact=pair in same)
    states = ranks[0][same[1]][3]  # of two ranks at stage 3, taken up by plain torch alone
    config = zero.settings("separate")
    learner = tiny.learner(config, seed=7)
    learner.load_state_dict(states)
    (figures,), (expected,) = zero.updates(learner, config, 1, first=2), alone("separate", 1, 2)[0]
    assert_close(figures, expected)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("learns", ["shared", "lora"])
def test_every_stage_goes_on_exactly_and_from_every_other(learns):
    chosen = cases(PLACES, [learns])
    same = [(case, case) for case in chosen]
    other = list(zip(chosen, chosen[3:] + chosen[:3], strict=True))
    ranks = run_ranks(zero.resumed, same + other, timeout=1000)
    for found in ranks:
        for pair in same + other:
            assert_goes_on(found[pair], exact=pair in same)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_process_of_plain_torch_is_taken_up_by_two_ranks():
    config = zero.settings("separate")
    learner = tiny.learner(config)
    zero.updates(learner, config, 2)
    chosen = cases(PLACES, ["separate"])
    found, _ = run_ranks(zero.taken_up, [learner.state_dict()], chosen, timeout=800)
    (expected,), _ = alone("separate", 1, 2)
    for case in chosen:
        assert_close(found[case][0], expected)


SAID = {
    "loss": "is not finite",
    "gradient": "gradient of the policy is not finite; no weight was changed",
}


def assert_untouched(cases):
    for found in run_ranks(zero.poisoned, cases, timeout=800):
        for (case, where), (message, same) in found.items():
            assert message is not None, case
            assert SAID[where] in message, case
            assert same, f"{case}: a weight of policy or critic moved"


def test_what_is_not_finite_on_one_rank_moves_no_weight_of_either_engine():
    chosen = cases(FEW, ["separate"])
    assert_untouched([(case, "gradient") for case in chosen] + [(chosen[-1], "loss")])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", SAID)
def test_no_stage_steps_with_what_is_not_finite(where):
    assert_untouched([(case, where) for case in cases(PLACES, ["separate"])])


def test_moments_that_leave_between_phases_come_back_to_the_last_bit():
    chosen = [(2, "none", "separate", dtype) for dtype in ("float32", "bfloat16")]
    for found in run_ranks(zero.rested, chosen, 2, timeout=280):
        for case in chosen:
            stayed, left = found[case]
            assert any(state.any() for state in left[3]["policy"]["optimizer"]["exp_avg"].values())
            assert differences(stayed, left) == []


LEARNS = (("separate", "float32"), ("lora", "bfloat16"))


def assert_left(chosen):
    """Engines of these cases, once closed, leave no tensor."""
    for found in run_ranks(zero.left, chosen):
        for case in chosen:
            alive, known = found[case]
            assert alive == 0, case
            assert known > 10


def test_an_engine_that_is_closed_leaves_nothing_in_memory():
    assert_left([(*zero.PLACES[at], *LEARNS[at]) for at in (0, -1)])


@pytest.mark.slow
def test_every_engine_that_is_closed_leaves_nothing_in_memory():
    assert_left([(*place, *learns) for place in zero.PLACES for learns in LEARNS])
