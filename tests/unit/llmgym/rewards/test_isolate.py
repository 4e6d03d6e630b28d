"""Graders that hang, exit, abort, crash, use signals; workers that die with their parent."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from llmgym.errors import RewardError, RewardNotFound
from llmgym.messages import Score
from llmgym.rewards.base import bounds_of, resolve, score_samples
from llmgym.rewards.function import from_function
from llmgym.rewards.isolate import Isolated
from llmgym.rewards.rules import Numeric
from tests.unit.llmgym.samples import is_gone, sample, scored

GRADER = """
import os, signal, sys, threading

import numpy as np

from llmgym import Reward, Score

def loop():
    print("looping", flush=True)
    while True:
        pass

def alarmed():
    def stop(*_):
        raise TimeoutError
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        while True:
            signal.pause()
    except TimeoutError:
        return 0.25

def raises():
    raise ValueError("no")

def grandchild():
    pid = os.fork()
    if pid == 0:
        loop()
    return float(pid)

def left_alarm():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    return 1.0

DEEDS = {
    "half": lambda: 0.5,
    "loop": loop, "alarm": alarmed, "raise": raises, "left alarm": left_alarm,
    "fork": grandchild,
    "exit": lambda: sys.exit(0), "os exit": lambda: os._exit(0), "abort": os.abort,
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "nan": lambda: float("nan"), "none": lambda: None, "text": lambda: "words",
    "print": lambda: (print('{"value": 1.0}', flush=True), 0.0)[1],
    "wait": lambda: float(not threading.Event().wait(0.3)),
    "main": lambda: float(threading.current_thread() is threading.main_thread()),
    "environ": lambda: {name: 1.0 for name in os.environ},
    "pid": lambda: float(os.getpid()),
    "parts": lambda: {"a": 1.0, "b": 0.5},
    "spans": lambda: Score(1.0, spans=((np.int64(0), np.int64(2), 1.0),), retries=3),
}

class EveryTurn(Reward):
    name, per_turn, bounds = "every_turn", True, (-1.0, 2.0)

    def score(self, samples):
        return [0.5] * len(samples)

class Together(EveryTurn):
    collective = True

def score(prompt, response, **columns):
    return DEEDS[response]()
"""


@pytest.fixture
def grader(tmp_path):
    """Write the grader into a file and give its address."""
    file = tmp_path / "grader.py"
    file.write_text(GRADER)
    return f"{file}:score"


@pytest.fixture
def isolated(grader):
    """Isolate the grader with a short deadline, and end its processes."""
    reward = Isolated(grader, workers=2, timeout=2.0)
    yield reward
    reward.close()


def test_good_verdicts_arrive_in_order_with_their_parts(isolated):
    scores = scored(isolated, "parts", "main", "parts", "alarm", "parts")
    assert [one.value for one in scores] == [1.5, 1.0, 1.5, 0.25, 1.5]
    assert scores[0].parts == {"a": 1.0, "b": 0.5}


def test_a_grader_that_hangs_is_killed_and_costs_its_own_sample(isolated):
    hung, fine = scored(isolated, "loop", "parts")
    assert (hung.value, hung.status) == (0.0, "error")
    assert "no verdict within 2 s" in hung.error
    assert fine.value == 1.5


def test_a_reward_that_calls_sys_exit_fails_with_its_line(grader, isolated):
    for reward in (isolated, resolve({"function": grader, "isolated": False})):
        before, ended, after = scored(reward, "parts", "exit", "parts")
        assert (before.value, after.value) == (1.5, 1.5)
        assert ended.status == "error"
        assert "SystemExit: 0 at " in ended.error


@pytest.mark.parametrize("deed", ["os exit", "abort", "segfault"])
def test_a_grader_that_ends_its_process_costs_its_own_sample(isolated, deed):
    before, ended, after = scored(isolated, "parts", deed, "parts")
    assert (before.value, after.value) == (1.5, 1.5)
    assert (ended.value, ended.status) == (0.0, "error")
    assert "its process ended" in ended.error


@pytest.mark.parametrize(("deed", "says"), [("raise", "ValueError: no"), ("nan", "not finite")])
def test_a_grader_that_fails_is_an_error_with_its_reason(isolated, deed, says):
    failed, fine = scored(isolated, deed, "parts")
    assert (failed.value, failed.status) == (0.0, "error")
    assert says in failed.error
    assert fine.value == 1.5


def test_none_abstains_here_as_elsewhere(isolated):
    scores = scored(isolated, "parts", "none", "parts")
    assert [score.status for score in scores] == ["ok", "abstain", "ok"]
    assert "score() returned None, which abstains" in scores[1].error


def test_a_text_is_a_broken_reward_here_as_elsewhere(isolated):
    with pytest.raises(RewardError, match=r"score\(\) returned str 'words'"):
        scored(isolated, "parts", "text", "parts")
    assert scored(isolated, "parts")[0].value == 1.5, "the next call starts clean"


def test_a_broken_reward_is_named_with_its_line_from_inside_its_process(isolated):
    line = GRADER.splitlines().index("def score(prompt, response, **columns):") + 1
    with pytest.raises(RewardError, match=rf"grader\.py:{line} score\(\) .* the response 'text'"):
        scored(isolated, "text")


def test_spans_and_repeated_calls_arrive_as_they_would_without_a_process(isolated):
    (score,) = scored(isolated, "spans")
    assert score == Score(1.0, spans=((0, 2, 1.0),), retries=3)


def test_what_a_reward_says_of_itself_is_known_before_it_is_asked(grader):
    reward = resolve(grader.replace(":score", ":EveryTurn"))
    assert reward.per_turn
    assert bounds_of(reward) == (-1.0, 2.0)
    copy = pickle.loads(pickle.dumps(reward))
    assert (copy.per_turn, bounds_of(copy)) == (True, (-1.0, 2.0))
    reward.close()
    with pytest.raises(RewardError, match=r"Together is collective.*\n--rewards.0.isolated false"):
        resolve(grader.replace(":score", ":Together"))


def test_what_a_grader_prints_is_no_verdict(isolated, capfd):
    assert scored(isolated, "print")[0].value == 0.0
    isolated.close()
    assert '{"value": 1.0}' in capfd.readouterr().err


def test_an_alarm_left_pending_does_not_end_the_next_sample(grader):
    reward = Isolated(grader, workers=1, timeout=5.0)
    assert [one.value for one in scored(reward, "left alarm", "wait", "alarm")] == [1.0, 1.0, 0.25]
    reward.close()


def test_the_environment_of_a_grader_holds_no_secrets(isolated, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    names = scored(isolated, "environ")[0].parts
    assert "SECRET_TOKEN" not in names
    assert "PATH" in names


def test_a_worker_killed_from_outside_is_replaced(isolated):
    workers = {int(one.value) for one in scored(isolated, "pid", "pid", "pid", "pid")}
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    again = scored(isolated, *["pid"] * 4)
    fresh = {int(one.value) for one in again if one.status == "ok"}
    assert len(fresh) > 0
    assert not fresh & workers
    assert [one.status for one in scored(isolated, "pid", "pid")] == ["ok", "ok"]


def test_a_process_killed_in_the_middle_of_a_batch_costs_one_sample(grader):
    reward = Isolated(grader, workers=1, timeout=30.0)
    pid = int(scored(reward, "pid")[0].value)
    found = []
    batch = threading.Thread(target=lambda: found.extend(scored(reward, "loop", "half", "half")))
    batch.start()
    while not any(one.job for one in reward._pool):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    batch.join(30)
    reward.close()
    assert [(one.value, one.status) for one in found] == [(0.0, "error"), *[(0.5, "ok")] * 2]
    assert "its process ended: an exit, an abort, a crash or a kill" in found[0].error


def test_a_long_sample_for_a_dead_worker_is_an_error_and_no_wait_without_end(grader):
    reward = Isolated(grader, workers=1, timeout=2.0)
    pid = int(scored(reward, "pid")[0].value)
    os.kill(pid, signal.SIGKILL)
    assert is_gone(pid)
    found = []
    long = sample("pid", filler="x" * 300_000)  # more than a pipe holds
    sending = threading.Thread(target=lambda: found.extend(reward.score([long])), daemon=True)
    sending.start()
    sending.join(20)
    assert not sending.is_alive(), "the trainer waits for a process that is dead"
    assert "its process ended" in found[0].error or "no verdict" in found[0].error
    reward.close()


def test_closing_ends_the_workers_and_what_they_started(grader):
    reward = Isolated(grader, workers=1)
    grader_pid, child_pid = (int(one.value) for one in scored(reward, "pid", "fork"))
    reward.close()
    assert is_gone(grader_pid)
    assert is_gone(child_pid)


@pytest.mark.parametrize("last", ["loop", "pid"])
def test_workers_die_with_their_parent_even_in_the_middle_of_a_sample(grader, last):
    program = textwrap.dedent(
        f"""
        from llmgym.rewards.isolate import Isolated
        from tests.unit.llmgym.samples import is_gone, sample, scored
        reward = Isolated({grader!r}, workers=1, timeout=60.0)
        print(int(reward.score([sample("pid")])[0].value), flush=True)
        reward.score([sample({last!r})])
        print("looping", flush=True)
        input()
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # where the grader's own "looping" arrives
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == b"looping\n"
    parent.kill()
    parent.wait()
    assert is_gone(pid)
    parent.communicate()


def test_processes_start_at_the_first_score_and_settings_pickle(grader):
    reward = Isolated(grader, workers=3, timeout=1.5)
    assert reward._pool == []
    copy = pickle.loads(pickle.dumps(reward))
    assert (copy._workers, copy._timeout, copy.name) == (3, 1.5, "score")
    assert scored(copy, "parts")[0].value == 1.5
    assert len(copy._pool) == 1, "no more processes than samples"
    copy.close()


def test_many_samples_are_shared_by_the_workers_in_little_time(isolated):
    scored(isolated, "parts")
    start = time.monotonic()
    assert {one.value for one in scored(isolated, *["parts"] * 500)} == {1.5}
    assert time.monotonic() - start < 5.0


def test_what_does_not_load_is_said_before_anything_is_scored(grader, tmp_path):
    with pytest.raises(RewardNotFound, match="'scor'; did you mean score"):
        scored(Isolated(grader.replace(":score", ":scor")), "parts")
    broken = tmp_path / "broken.py"
    broken.write_text("def score(:\n")
    with pytest.raises(RewardNotFound, match="SyntaxError"):
        scored(Isolated(f"{broken}:score"), "parts")
    with pytest.raises(RewardError, match=r"cannot be sent to another process.*\n.*FILE.py:FN"):
        Isolated(from_function(lambda response: 1.0))
    with pytest.raises(RewardError, match="above 0, got 0"):
        Isolated(grader, workers=0)


def test_a_name_that_does_not_load_is_refused_when_it_is_resolved(grader):
    with pytest.raises(RewardNotFound, match="'scor'; did you mean score"):
        resolve(grader.replace(":score", ":scor"))
    with pytest.raises(RewardError, match="must take response"):
        resolve(grader.replace(":score", ":raises"))


def test_an_object_travels_by_pickling():
    reward = Isolated(Numeric(tol=0.5))
    assert score_samples(reward, [sample("3.4", 3)])[0].value == 1.0
    assert reward.name == "numeric"
    reward.close()


def test_a_named_function_is_isolated_unless_told_otherwise(grader):
    assert isinstance(resolve(grader), Isolated)
    assert isinstance(resolve({"function": grader, "timeout_seconds": 3}), Isolated)
    assert not isinstance(resolve({"function": grader, "isolated": False}), Isolated)
    assert not isinstance(resolve({"name": "numeric", "isolated": True}), Isolated)
    assert isinstance(resolve("math.verify"), Isolated)
