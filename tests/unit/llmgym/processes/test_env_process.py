"""`EnvProcess`: a library's environment elsewhere; what breaks it costs one call, and no more."""

import copy
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env

from llmgym.errors import EnvContractError, EnvProcessError, EnvTimeoutError, PluginError
from llmgym.messages import StopReason
from llmgym.processes.env_process import EnvProcess
from llmgym.processes.plain import dumped, loaded
from tests.unit.llmgym.processes.worlds import Foreign

WORLDS = Path(__file__).parent / "worlds.py"
FOREIGN = f"{WORLDS}:Foreign"


@pytest.fixture
def made():
    """Make environments that are closed after the test."""
    environments = []

    def make(*args, **kwargs):
        environments.append(EnvProcess(*args, **kwargs))
        return environments[-1]

    yield make
    for env in environments:
        env.close()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds=5.0):
    until = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_an_environment_of_gymnasium_passes_its_checker_and_plays_alike(made):
    ours, theirs = made("CartPole-v1"), gymnasium.make("CartPole-v1")
    check_env(ours, skip_render_check=True)
    assert ours.action_space == theirs.action_space
    for seed in (3, None):
        assert np.array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
        for action in (0, 1, 1, 0):
            mine, other = ours.step(action), theirs.step(action)
            assert np.array_equal(mine[0], other[0])
            assert mine[1:4] == other[1:4]


@pytest.mark.parametrize(
    "make",
    [FOREIGN, "tests.unit.llmgym.processes.worlds:Foreign", Foreign, partial(Foreign)],
    ids=["file", "module", "class", "partial"],
)
def test_it_is_built_by_name(made, make):
    env = made(make, {"render_mode": "ansi"})
    info = env.reset(seed=1)[1]
    assert info["who"] == env.pid != os.getpid()
    assert (env.render_mode, env.render()) == ("ansi", "turn 0")
    assert env.call("gold", factor=2) == 0
    assert env.call("turn") == 0
    assert env.action_space == Discrete(4)


def states():
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 - what is watched


def test_shared_generators_are_its_own_and_follow_the_seed(made):
    before = states()
    one, two = made(FOREIGN), made(FOREIGN)
    looks = [[env.reset(seed=5)[0], env.step(0)[0], env.reset()[0]] for env in (one, two)]
    assert looks[0] == looks[1]
    assert made(FOREIGN).reset()[0] != made(FOREIGN).reset()[0]
    assert states() == before


def test_what_crosses_is_plain(made):
    env = made(FOREIGN)
    info = env.reset(seed=0)[1]
    assert (info["opaque"], info["handle"]) == ({"number": 3}, "<a handle>")
    _, reward, terminated, truncated, info = env.step(1)
    assert (type(reward), type(terminated), truncated) == (float, bool, False)
    assert info["array"].tolist() == [0, 1, 2]
    assert info["deep"] == [{"n": 1.5}]
    with pytest.raises(EnvContractError, match="The observation is a Handle"):
        env.step("handle")
    with pytest.raises(EnvContractError, match="A reward is a number; step returned 'won'"):
        env.step("sentence")


@pytest.mark.parametrize(
    ("action", "match"),
    [
        ("exit", "ended in the middle of a call: it exited with code 7"),
        ("crash", r"killed by SIGSEGV at .*worlds.py:\d+$"),
        ("kill", "killed by SIGKILL, perhaps for lack of memory"),
    ],
)
def test_a_crash_is_an_error_of_its_call_and_the_process_is_made_anew(made, action, match):
    env = made(FOREIGN)
    env.reset(seed=0)
    old = env.pid
    with pytest.raises(EnvProcessError, match=match):
        env.step(action)
    assert gone([old])
    with pytest.raises(ResetNeeded, match="has no episode"):
        env.step(0)
    assert env.reset(seed=4)[0] == made(FOREIGN).reset(seed=4)[0]
    assert env.pid != old


@pytest.mark.parametrize("action", ["hang", "spin", "deaf"])
def test_a_hang_ends_with_its_process_and_names_the_line(made, action):
    env = made(FOREIGN, timeout=0.5)
    env.reset(seed=0)
    began, old = time.monotonic(), env.pid
    with pytest.raises(EnvTimeoutError, match=r"timeout=0.5 s: it was at .*worlds.py:\d+ .*killed"):
        env.step(action)
    assert time.monotonic() - began < 5.0
    assert gone([old])
    env.reset(seed=0)
    env.step(1)


def test_an_error_of_the_environment_leaves_its_process(made):
    env = made(FOREIGN)
    env.reset(seed=0)
    with pytest.raises(EnvProcessError, match=r"step of .*: ZeroDivisionError: the world broke$"):
        env.step("raise")
    assert env.step(0)[1] == 0.5


def test_memory_beyond_the_limit_is_an_error(made):
    env = made(FOREIGN, memory=0.4)
    env.reset(seed=0)
    with pytest.raises(EnvProcessError, match="MemoryError"):
        env.step("eat")
    assert env.step(0)[1] == 0.5
    free = made(FOREIGN)
    free.reset(seed=0)
    assert free.step("eat")[1] == 0.5


def test_output_goes_to_the_log_escaped_and_up_to_a_limit(made, caplog, capfd):
    env = made(FOREIGN)
    env.reset(seed=0)
    with caplog.at_level("INFO", "llmgym.processes"):
        env.step("print")
        assert [record.getMessage() for record in caplog.records] == [
            f"{FOREIGN}: hello \\x1b[31m from the world",
            f"{FOREIGN}: and its errors",
        ]
        caplog.clear()
        env.step("flood")
        assert sum(len(record.getMessage()) for record in caplog.records) < 60_000
        assert caplog.records[-1].getMessage().endswith("further output is left out)")
        env.step("close")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("end", ["close", "crash", "lost"])
def test_nothing_is_left_behind(made, end):
    env = made(FOREIGN)
    env.reset(seed=0)
    left = [*env.call("leave"), env.pid]
    assert all(map(is_alive, left))
    if end == "close":
        env.close()
    elif end == "crash":
        with pytest.raises(EnvProcessError):
            env.step("kill")
    else:
        env._client = None
        env.close = lambda: None
    assert gone(left)


def test_a_copy_plays_on_from_the_same_step(made):
    env = made(FOREIGN)
    env.reset(seed=3)
    env.reset()
    env.step(1)
    for copied in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        again = pickle.loads(pickle.dumps(env))
        assert copied.step(2)[0] == again.step(2)[0]
        assert copied.call("gold") == 2
        assert copied.pid != env.pid
        copied.close()
        again.close()
    expected = env.step(2)[0]
    env.reset(seed=3)
    env.reset()
    env.step(1)
    assert env.step(2)[0] == expected


@pytest.mark.parametrize(
    ("make", "kwargs", "error", "match"),
    [
        (lambda: Foreign(), {}, EnvContractError, "not at the top of its module. Name it"),
        (3, {}, EnvContractError, "has a name; got 3"),
        (FOREIGN, {"fail": lambda: 0}, EnvContractError, "The argument fail of .* cannot be sent"),
        (FOREIGN, {"fail": "raise"}, EnvProcessError, "building of .*: ZeroDivisionError"),
        (FOREIGN, {"fail": "exit"}, EnvProcessError, "ended while it was built: it exited with"),
        (f"{WORLDS}:Nobody", {}, PluginError, "has no 'Nobody'"),
        (f"{WORLDS}:Unusual", {}, EnvContractError, r"The space .*Odd cannot cross"),
        ("CartPoll-v1", {}, gymnasium.error.NameNotFound, "Did you mean CartPole-v1"),
    ],
)
def test_what_cannot_be_built_says_why(make, kwargs, error, match):
    with pytest.raises(error, match=match):
        EnvProcess(make, kwargs)


@pytest.mark.parametrize("settings", [{"timeout": 0.0}, {"memory": 0.0}, {"memory": -1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(EnvContractError, match="must be above 0"):
        EnvProcess(FOREIGN, **settings)


SCRIPT = """
import os, sys, time
from llmgym.messages import StopReason
from llmgym.processes.env_process import EnvProcess
from llmgym.processes.plain import dumped, loaded, plain
env = EnvProcess(sys.argv[1])
env.reset(seed=0)
print(env.pid, *env.call("leave"), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_all_ends_with_the_process_that_trains(end):
    trainer = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, FOREIGN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    pids = [int(word) for word in trainer.stdout.readline().split()]
    assert len(pids) == 4
    trainer.send_signal(end)
    trainer.communicate()
    assert gone(pids)


def test_what_was_sent_runs_no_code_where_it_is_read():
    with pytest.raises(EnvContractError, match=r"posix\.system is neither plain data nor a record"):
        loaded(pickle.dumps(Runs()))
    assert loaded(dumped({"s": StopReason.LENGTH, "t": (1, {2}), "a": np.arange(2)}))["t"] == (
        1,
        {2},
    )


class Runs:
    def __reduce__(self):
        return os.system, ("true",)
