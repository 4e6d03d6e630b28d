"""A vector whose slots are processes: one fault costs one slot, and scores are given here."""

import os
import re
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from llmgym import LLMVectorEnv
from llmgym.addresses import load
from llmgym.env import core_env
from llmgym.errors import EnvContractError, EnvProcessError, EnvTimeoutError
from llmgym.processes.env_process import EnvProcess
from tests.unit.llmgym.processes.worlds import Waits, Wild, Works

TOYS = Path(__file__).parents[1] / "toys.py"
say, guess, Count = (load(f"{TOYS}:{name}") for name in ("say", "guess", "Count"))


@pytest.fixture
def vector():
    """Make vectors of processes that are closed after the test."""
    vectors = []

    def make(fn, n, **kwargs):
        vectors.append(LLMVectorEnv([fn] * n, executor="processes", **kwargs))
        return vectors[-1]

    yield make
    for envs in vectors:
        envs.close()


def test_each_slot_plays_in_a_process_of_its_own_and_is_scored_in_this_one(vector):
    reward = Count()
    envs = vector(partial(say, reward), 8)
    envs.reset(seed=0)
    _, rewards, *_ = envs.step([env.solve() for env in envs.envs])
    assert rewards.tolist() == [1.0] * 8
    assert reward.calls == [8]
    assert len({os.getpid(), *(env.client.pid for env in envs.envs)}) == 9
    assert [core_env(env).task.id for env in envs.envs] == envs.reset(seed=0)[1]["task_id"].tolist()


@pytest.mark.parametrize(
    ("action", "reason", "error"),
    [
        ("raise", "env_error", "ZeroDivisionError: the world broke"),
        ("exit", "env_error", "the environment's process ended in the middle of a call: it exited"),
        ("crash", "env_error", "the environment's process ended .*: killed by SIGSEGV at .*worlds"),
        ("hang", "timeout", "no reply within env_timeout=1 s: it was at .*worlds.py"),
        ("spin", "timeout", "no reply within env_timeout=1 s: it was at .*worlds.py"),
        ("eat", "env_error", "MemoryError: the memory limit is reached"),
    ],
)
def test_a_fault_ends_its_slot_alone_and_its_process_is_made_anew(vector, action, reason, error):
    envs = vector(Wild, 3, env_timeout=1.0, memory_gb=0.4)
    envs.reset(seed=0)
    pids = [env.client.pid for env in envs.envs]
    _, rewards, terminated, truncated, infos = envs.step(["go", action, "end"])
    assert rewards.tolist() == [0.25, 0.0, 0.25]
    assert (terminated.tolist(), truncated.tolist()) == ([False, False, True], [False, True, False])
    assert infos["stop_reason"].tolist() == [None, reason, "env_done"]
    assert infos["reward_valid"].tolist() == [True, False, True]
    assert re.match(error, infos["reward_error"][1])
    envs.reset(options={"reset_mask": np.array([False, True, True])})
    assert envs.step(["go"] * 3)[1].tolist() == [0.25] * 3
    now = [env.client.pid for env in envs.envs]
    assert [old == new for old, new in zip(pids, now, strict=True)] == [True, False, True]


def test_a_slot_made_anew_draws_on_as_the_old_one_would(vector):
    prompts = []
    for action in ("kill", "end"):
        envs = vector(Wild, 1)
        envs.reset(seed=4)
        envs.step([action])
        prompts.append([envs.reset()[0], envs.reset()[0]])
    assert prompts[0] == prompts[1]


def test_processes_of_one_seed_draw_alike_from_shared_generators(vector):
    envs = vector(Wild, 4)
    envs.reset(seed=[1, 1, 2, None])
    outcomes = envs._advance(dict.fromkeys(range(4), "go"))
    draws = [outcome.value[3].state["draw"] for outcome in outcomes.values()]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert not any(outcome.value[3].state["torch"] for outcome in outcomes.values())


@pytest.mark.parametrize(("workers", "least"), [(None, 0.3), (1, 1.2)])
def test_as_many_slots_play_at_a_time_as_there_are_workers(vector, workers, least):
    envs = vector(Wild, 4, workers=workers)
    envs.reset(seed=0)
    began = time.monotonic()
    envs.step(["nap"] * 4)
    seconds = time.monotonic() - began
    assert seconds >= least
    assert workers is not None or seconds < 1.2


@pytest.mark.parametrize(
    ("system", "error", "match"),
    [
        ("raise", EnvProcessError, "reset of slot 0: ZeroDivisionError: the world broke"),
        ("exit", EnvProcessError, "reset of slot 0: the environment's process ended in the middle"),
        ("hang", EnvTimeoutError, "reset of slot 0: no reply within env_timeout=0.5 s"),
    ],
)
def test_a_reset_that_fails_twice_is_an_error(vector, caplog, system, error, match):
    envs = vector(partial(Wild, system=system), 1, env_timeout=0.5)
    with pytest.raises(error, match=match):
        envs.reset(seed=0)
    assert len(caplog.records) == (system != "raise")


def test_a_process_that_ended_between_calls_is_made_anew_at_the_reset(vector, caplog):
    envs = vector(Wild, 2)
    envs.reset(seed=0)
    os.kill(envs.envs[0].client.pid, 9)
    observations, _ = envs.reset(seed=0)
    assert observations == vector(Wild, 2).reset(seed=0)[0]
    assert "slot 0: the environment's process ended" in caplog.text


def test_an_id_is_built_by_its_name():
    envs = gymnasium.make_vec("llmgym/Arithmetic-v0", num_envs=3, executor="processes", digits=2)
    inline = gymnasium.make_vec("llmgym/Arithmetic-v0", num_envs=3, digits=2)
    options = {"indices": [3, 1, 4]}
    assert envs.reset(options=options)[0] == inline.reset(options=options)[0]
    answers = [env.solve() for env in envs.envs]
    assert envs.step(answers)[1].tolist() == [1.0] * 3
    envs.close()


def test_an_id_of_a_plugin_is_known_where_it_is_built(registered, vector):
    id = registered(f"{TOYS}:say", "toy/InProcess-v0")
    envs = gymnasium.make_vec(id, num_envs=2, executor="processes")
    envs.reset(seed=0)
    envs.close()
    env = EnvProcess(id)
    assert env.reset(seed=0)[0][0]["content"].startswith("Say ")
    env.close()


def test_a_process_finds_what_this_one_finds_now(tmp_path, monkeypatch, vector):
    (tmp_path / "newly_written.py").write_text(
        "import os\nimport llmgym\n"
        "def make():\n"
        "    rows = [os.environ['NEWLY_SET'] + os.getcwd()]\n"
        "    return llmgym.SingleTurnEnv(llmgym.from_list(rows), 'constant')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NEWLY_SET", "set ")
    env = EnvProcess("newly_written:make")
    assert env.reset()[0][0]["content"] == f"set {tmp_path}"
    env.close()


def test_a_reward_stays_where_it_scores(vector):
    envs = vector(partial(Wild, reward=lambda response: 0.5), 2)
    envs.reset(seed=0)
    assert envs.step(["go", "end"])[1].tolist() == [0.25, 0.75]
    *_, infos = envs.step(["score", None])
    assert "RewardError: <lambda> scores where the run trains" in infos["reward_error"][0]


def test_what_another_process_cannot_find_is_refused():
    with pytest.raises(EnvContractError, match="not at the top of its module"):
        LLMVectorEnv([lambda: Wild()], executor="processes")
    with pytest.raises(EnvContractError, match=r"The argument system of .* cannot be sent"):
        LLMVectorEnv([partial(Wild, system=lambda: 0)], executor="processes")


def rate(make, executor, **kwargs):
    """Return steps per second of 64 slots."""
    envs = LLMVectorEnv([make] * 64, executor=executor, **kwargs)
    envs.reset(seed=0)
    envs.step(["go"] * 64)
    began = time.monotonic()
    for _ in range(3):
        envs.step(["go"] * 64)
    seconds = time.monotonic() - began
    envs.close()
    return 3 * 64 / seconds


def speedup(make, **kwargs):
    """Return how much faster processes are, of three attempts the best: others use the machine."""
    return max(rate(make, "processes", **kwargs) / rate(make, "inline") for _ in range(3))


@pytest.mark.slow
def test_processes_are_faster_than_one_process_where_an_environment_waits_or_works():
    assert speedup(Waits) >= 0.8
    assert speedup(Works, workers=2) >= 1.5 or (os.cpu_count() or 1) < 2
