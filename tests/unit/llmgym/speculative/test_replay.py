"""Replays: every rule writes the same tokens, and times add up to those of the table."""

import itertools

import numpy as np
import pytest

from llmgym.errors import TaskSourceError
from llmgym.speculative.replay import best_fixed, entropy_below, fixed, oracle, replay
from llmgym.speculative.traces import FEATURES, Trace, made_trace, read_trace, write_trace


def trace(accepted, lengths, draft_ms=0.1, longest=3):
    positions = len(accepted)
    return Trace(
        name="toy",
        starts=np.cumsum([0, *lengths]),
        accepted=np.array(accepted),
        target=np.zeros((positions, len(FEATURES)), np.float32),
        draft=np.zeros((positions, longest, len(FEATURES)), np.float32),
        draft_ms=draft_ms,
        verify_ms=np.array([1.0, 1.1, 1.2, 1.3])[: longest + 1],
    )


def test_plain_decoding_is_a_pass_per_token():
    done = replay(made_trace(1), fixed(0))
    assert done.speed == pytest.approx(1.0)
    assert (done.cycles, done.drafted) == (done.tokens, 0)


def test_a_cycle_takes_its_drafts_and_one_pass():
    done = replay(trace([3, 0, 0, 0, 1, 0], [4, 2]), fixed(3))
    # 3 + 1 tokens; then 1 accepted and the sequence ends
    assert (done.cycles, done.drafted, done.accepted, done.tokens) == (2, 6, 4, 6)
    assert done.milliseconds == pytest.approx(2 * (3 * 0.1 + 1.3))


def test_a_drafter_that_is_always_right_gives_the_largest_speed():
    always = trace([3] * 12, [12])
    assert replay(always, fixed(3)).acceptance == 1.0
    assert replay(always, fixed(3)).speed == pytest.approx(4 * 1.0 / (0.3 + 1.3))
    never = trace([0] * 12, [12])
    assert replay(never, fixed(3)).speed == pytest.approx(1.0 / (0.3 + 1.3))
    assert best_fixed(never)[0] == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_oracle_is_the_best_of_all_ways_to_draft(seed):
    rng = np.random.default_rng(seed)
    drawn = trace(rng.integers(0, 4, size=5), [5])
    times = []
    for lengths in itertools.product(range(4), repeat=5):
        times.append(replay(drawn, lambda _, p, chosen=lengths: chosen[p]).milliseconds)
    assert replay(drawn, oracle(drawn)).milliseconds == pytest.approx(min(times))


def test_rules_are_ordered_on_mixed_text():
    made = made_trace(3)
    length, best = best_fixed(made)
    threshold = max(replay(made, entropy_below(t)).speed for t in (0.2, 0.5, 1.0, 1.5))
    assert 0 < length < made.longest
    assert 1.0 < best.speed < replay(made, oracle(made)).speed
    assert threshold > best.speed, "the drafter's entropy tells easy passages from hard ones"


def test_a_trace_comes_back_from_its_file(tmp_path):
    made = made_trace(2, sequences=3, length=9)
    write_trace(tmp_path / "a.npz", made)
    read = read_trace(tmp_path / "a.npz")
    assert (read.name, read.draft_ms) == (made.name, made.draft_ms)
    for name in ("starts", "accepted", "target", "draft", "verify_ms"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no arrays")
    for path in (tmp_path / "a.npz", tmp_path / "none.npz"):
        with pytest.raises(TaskSourceError, match="no trace of drafts"):
            read_trace(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accepted": [0, 1]}, "accepted"),
        ({"lengths": [2, 0, 1]}, "starts"),
        ({"accepted": [0, 4, 0]}, "more tokens than it drafts"),
        ({"draft_ms": 0.0}, "not above 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    made = trace([0, 1, 2], [3])
    settings = {"starts": made.starts, "accepted": made.accepted, "draft_ms": 0.1, **changes}
    settings["starts"] = np.cumsum([0, *settings.pop("lengths", [3])])
    settings["accepted"] = np.array(settings["accepted"])
    with pytest.raises(TaskSourceError, match=message):
        Trace(
            name="toy", target=made.target, draft=made.draft, verify_ms=made.verify_ms, **settings
        )
