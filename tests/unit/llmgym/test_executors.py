"""Executors: the same results by slot, one failure one slot, a stuck thread left behind."""

import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from llmgym.executors import run_inline, run_threads
from llmgym.limits import CallLimit
from llmgym.messages import StopReason

ROOT = Path(__file__).parents[3]


def square(slot):
    if slot == 3:
        raise KeyError("slot\nthree")
    return slot * slot


@pytest.mark.parametrize("workers", [None, 1, 2, 9])
def test_results_are_by_slot_whoever_runs_them(workers):
    slots = [4, 0, 3, 7]
    run = run_inline if workers is None else run_threads
    kwargs = {} if workers is None else {"workers": workers}
    outcomes = run(square, slots, **kwargs)
    assert {slot: outcome.value for slot, outcome in outcomes.items()} == {
        4: 16,
        0: 0,
        3: None,
        7: 49,
    }
    assert outcomes[3].failure is StopReason.ENV_ERROR
    assert outcomes[3].error.startswith("KeyError: ")
    assert outcomes[4].failure is outcomes[4].error is None
    assert all(outcome.seconds >= 0 for outcome in outcomes.values())


@pytest.mark.parametrize("run", [run_inline, partial(run_threads, workers=2, limit=CallLimit(5.0))])
def test_a_slot_that_exits_is_a_failure_of_its_own_and_nobody_waits_for_it(run):
    outcomes = run(lambda slot: sys.exit("bye") if slot else slot, range(2))
    assert (outcomes[0].value, outcomes[0].failure) == (0, None)
    assert (outcomes[1].failure, outcomes[1].error) == (StopReason.ENV_ERROR, "SystemExit: bye")


def test_no_slots_are_no_work():
    assert run_threads(square, [], workers=3) == {}


def test_threads_run_at_the_same_time():
    meet = threading.Barrier(4, timeout=30)
    outcomes = run_threads(lambda slot: meet.wait() >= 0, range(4), workers=4)
    assert [outcomes[slot].value for slot in range(4)] == [True] * 4


def test_no_more_threads_run_than_workers():
    running, most, lock = 0, 0, threading.Lock()

    def watch(slot):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        sum(range(20_000))
        with lock:
            running -= 1

    run_threads(watch, range(20), workers=3)
    assert 1 <= most <= 3


def test_late_slots_are_given_up_and_the_waiting_ones_still_run():
    stuck = threading.Event()

    def work(slot):
        return stuck.wait(60) if slot < 2 else slot

    began = time.monotonic()
    outcomes = run_threads(work, range(6), workers=2, limit=CallLimit(0.05))
    assert time.monotonic() - began < 10
    stuck.set()
    assert [outcomes[slot].failure for slot in range(6)] == [StopReason.TIMEOUT] * 2 + [None] * 4
    assert [outcomes[slot].value for slot in range(2, 6)] == [2, 3, 4, 5]
    assert "env_timeout=0.05" in outcomes[0].error
    assert f"{Path(__file__).name}:" in outcomes[0].error


def test_the_limit_counts_from_a_slots_own_start():
    release = threading.Event()

    def work(slot):
        release.wait(0.04)  # ten of these in turn take longer than the limit
        return slot

    outcomes = run_threads(work, range(10), workers=1, limit=CallLimit(0.3))
    assert all(outcome.failure is None for outcome in outcomes.values())


def test_a_stuck_thread_does_not_keep_the_process_alive():
    code = (
        "import threading; from llmgym.executors import run_threads\n"
        "from llmgym.limits import CallLimit\n"
        "stuck = threading.Event()\n"
        "limit = CallLimit(0.05)\n"
        "print(run_threads(lambda slot: stuck.wait(), [0], workers=1, limit=limit)[0].failure)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert b"timeout" in done.stdout.lower()
