import os
import time

import numpy as np
import pytest

from trainers.compress import timing
from trainers.compress.timing import (
    TimedWork,
    check_idle,
    clock,
    interleaved,
    machine_record,
    paired_ratio,
)
from trainers.errors import MeasurementError


@pytest.fixture
def fake_clock(monkeypatch):
    """A clock that work moves by hand."""
    now = [0.0]
    monkeypatch.setattr(timing, "clock", lambda: lambda: now[0])
    return now


def noisy(now, seconds, rng):
    """TimedWork of about `seconds`, slower in some rounds."""

    def run():
        now[0] += seconds * rng.uniform(0.97, 1.03)

    return TimedWork(run)


def test_work_against_itself_has_an_interval_around_one_nineteen_times_in_twenty(fake_clock):
    work = noisy(fake_clock, 1.0, np.random.default_rng(0))
    ratios = [paired_ratio(work, work, rounds=40, seed=seed) for seed in range(40)]
    assert sum(ratio.low <= 1 <= ratio.high for ratio in ratios) >= 35
    assert all(ratio.high - ratio.low < 0.05 for ratio in ratios)


def test_work_that_takes_a_fifth_more_is_seen(fake_clock):
    rng = np.random.default_rng(0)
    ratio = paired_ratio(noisy(fake_clock, 1.2, rng), noisy(fake_clock, 1.0, rng), rounds=40)
    assert 1.15 < ratio.low < ratio.median < ratio.high < 1.25


def test_a_slow_time_of_the_machine_does_not_move_a_ratio(fake_clock):
    rounds = [0]

    def of(seconds):
        def run():  # the machine gets ten times slower on the way
            fake_clock[0] += seconds * (10 if rounds[0] > 30 else 1)
            rounds[0] += 1

        return TimedWork(run)

    ratio = paired_ratio(of(1.2), of(1.0), rounds=30)
    assert ratio.median == pytest.approx(1.2)


def test_work_is_interleaved_reset_untimed_and_warmed_up(fake_clock):
    order, resets = [], []

    def of(name):
        def run():
            order.append(name)
            fake_clock[0] += 1.0

        def reset():
            resets.append(name)
            fake_clock[0] += 100.0

        return TimedWork(run, reset)

    seconds = interleaved([of("a"), of("b"), of("c")], rounds=20, warmups=2)
    assert seconds.shape == (20, 3)
    assert (seconds == 1.0).all()
    assert order == resets
    by_round = [order[at : at + 3] for at in range(0, 66, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in by_round)
    assert len({tuple(names) for names in by_round}) > 3


def test_the_clock_of_one_thread_leaves_out_waiting(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    began = clock()()
    time.sleep(0.05)
    assert clock()() - began < 0.02
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert clock() is time.perf_counter


def test_few_rounds_and_busy_machines_are_refused(monkeypatch):
    with pytest.raises(MeasurementError, match="9 rounds say too little"):
        paired_ratio(TimedWork(lambda: None), TimedWork(lambda: None), rounds=9)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    check_idle(1.5)
    with pytest.raises(MeasurementError, match=r"1\.50 processes per core .* up to 1\.20"):
        check_idle(1.2)


def test_the_record_names_what_a_time_depends_on():
    assert {
        "processor",
        "cores",
        "threads",
        "clock",
        "torch",
        "transformers",
    } == machine_record().keys()
