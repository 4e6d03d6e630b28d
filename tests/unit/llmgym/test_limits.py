"""A call that hangs in the main thread is interrupted and named, and costs its slot alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import llmgym
from llmgym import LLMVectorEnv, limits
from llmgym.errors import EnvContractError, EnvTimeoutError
from llmgym.executors import run_inline, run_threads
from llmgym.limits import CallLimit, LateCall, within
from llmgym.messages import StopReason

HERE = Path(__file__).name


def sleeps():
    time.sleep(60)


def loops():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass


def waits():
    threading.Event().wait(60)


def catches():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(Exception):
            time.sleep(60)


@pytest.mark.parametrize("hang", [sleeps, loops, waits, catches])
def test_a_late_slot_is_interrupted_and_its_siblings_are_not(hang):
    began = time.monotonic()
    outcomes = run_inline(
        lambda slot: hang() if slot == 1 else slot, range(4), limit=CallLimit(0.2)
    )
    assert time.monotonic() - began < 30
    assert [outcomes[slot].value for slot in range(4)] == [0, None, 2, 3]
    assert outcomes[1].failure is StopReason.TIMEOUT
    assert "env_timeout=0.2" in outcomes[1].error
    assert f"{HERE}:" in outcomes[1].error


def test_after_two_late_slots_the_rest_are_not_called():
    called = []

    def work(slot):
        called.append(slot)
        time.sleep(60)

    outcomes = run_inline(work, range(50), limit=CallLimit(0.1))
    assert called == [0, 1]
    assert {one.failure for one in outcomes.values()} == {StopReason.TIMEOUT}
    assert "not called" in outcomes[49].error


@pytest.mark.parametrize("run", [run_inline, partial(run_threads, workers=1)])
def test_a_request_to_stop_shortens_the_call_that_runs(run):
    limit = CallLimit(600.0)
    threading.Timer(0.2, limit.hurry, [0.1]).start()
    began = time.monotonic()
    outcomes = run(lambda slot: time.sleep(60), [0], limit=limit)
    assert time.monotonic() - began < 30
    assert "a request to stop" in outcomes[0].error
    assert run(lambda slot: slot, [7], limit=limit)[7].value == 7  # a quick one still has a second


def test_nothing_is_raised_once_the_call_is_over():
    limit = CallLimit(0.05)
    with pytest.raises(LateCall):
        within(limit, lambda: time.sleep(60))
    end = time.monotonic() + 0.5
    while time.monotonic() < end:  # a signal that came late would raise here
        pass


def test_the_inner_of_two_calls_has_its_own_limit():
    def outer():
        with pytest.raises(LateCall):
            within(CallLimit(0.1), sleeps)
        return "went on"

    assert within(CallLimit(60.0), outer) == "went on"


def test_what_cannot_be_interrupted_is_reported_with_its_line(monkeypatch):
    monkeypatch.setattr(limits, "STUCK_SECONDS", 0.2)
    told = threading.Event()
    limit, messages = CallLimit(0.1), []
    limit.on_stuck = lambda message: (messages.append(message), told.set())

    def deaf():
        while not told.is_set():
            with suppress(LateCall):  # as a call inside of a C library, which sees no signal
                time.sleep(0.01)

    with pytest.raises(LateCall):  # the last signal is on its way
        within(limit, lambda: (deaf(), time.sleep(60)))
    assert f"{HERE}:" in messages[0]


def in_a_thread(function):
    """What a function returns or raises in another thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


def test_in_another_thread_a_late_call_is_left_behind_and_named():
    ended, message = threading.Event(), rf"env_timeout=0.05 s: it was at .*{HERE}:"
    with pytest.raises(LateCall, match=message):
        in_a_thread(lambda: within(CallLimit(0.05), lambda: time.sleep(0.4) or ended.set()))
    assert not ended.is_set()
    assert ended.wait(10)
    assert in_a_thread(lambda: within(CallLimit(10.0), lambda: "done")) == "done"
    with pytest.raises(ZeroDivisionError):
        in_a_thread(lambda: within(CallLimit(10.0), lambda: 1 / 0))


def test_in_another_thread_a_call_without_a_limit_is_made_there():
    made = in_a_thread(
        lambda: (within(CallLimit(None), threading.get_ident), threading.get_ident())
    )
    assert made[0] == made[1]


class Resets(llmgym.LLMEnv):
    """A world that does in its reset what it is told to."""

    act = staticmethod(sleeps)

    def __init__(self):
        super().__init__(llmgym.from_list([{"prompt": "a"}]), None)

    def prompt(self, task):
        type(self).act()
        return super().prompt(task)

    def reply(self, response):
        return None


def test_a_reset_that_hangs_or_exits_is_an_error_that_names_it(monkeypatch):
    envs = LLMVectorEnv([Resets], env_timeout=0.2)
    with pytest.raises(EnvTimeoutError, match=rf"slot 0: .*{HERE}"):
        envs.reset(seed=0)
    monkeypatch.setattr(Resets, "act", staticmethod(lambda: exec("raise SystemExit(5)")))
    with pytest.raises(EnvContractError, match=r"Resets called sys.exit\(5\)"):
        envs.reset(seed=0)


def test_a_reply_that_is_none_says_what_it_must_be(monkeypatch):
    monkeypatch.setattr(Resets, "act", staticmethod(lambda: None))
    env = Resets()
    env.reset(seed=0)
    with pytest.raises(EnvContractError, match=r"reply\(\) of Resets returns a Reply; .*None"):
        env.step("x")
