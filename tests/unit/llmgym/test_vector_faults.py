"""What fails in one slot stays there; what a caller does wrong is said before anything moves."""

from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from llmgym import LLMVectorEnv
from llmgym.addresses import load
from llmgym.errors import EnvContractError, EpisodeOverError, RewardError
from llmgym.rewards.base import Reward

TOYS = Path(__file__).parent / "toys.py"
say, Poison, Fragile = (load(f"{TOYS}:{name}") for name in ("say", "Poison", "Fragile"))


def vector(make, n, **kwargs):
    return LLMVectorEnv([make] * n, **kwargs)


def test_one_poisoned_sample_does_not_take_the_others():
    envs = vector(partial(say, Poison()), 3)
    envs.reset(seed=0)
    _, rewards, terminated, _, infos = envs.step(["x", "boom", "x"])
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    assert infos["reward_valid"].tolist() == [True, False, True]
    assert terminated.all()


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_an_exception_in_one_slot_ends_that_slot_alone(executor):
    envs = vector(Fragile, 3, executor=executor)
    envs.reset(seed=0)
    broken = envs.envs[1]
    obs, rewards, terminated, truncated, infos = envs.step(["go", "boom", "end"])
    assert rewards.tolist() == [0.25, 0.0, 0.25]
    assert terminated.tolist() == [False, False, True]
    assert truncated.tolist() == [False, True, False]
    assert infos["stop_reason"].tolist() == [None, "env_error", "env_done"]
    assert infos["reward_valid"].tolist() == [True, False, True]
    assert infos["reward_error"][1] == "ZeroDivisionError: the world broke"
    assert obs[1] in envs.single_observation_space
    assert envs.envs[1] is not broken
    with pytest.raises(EpisodeOverError):
        envs.step([None, "go", None])
    envs.reset(options={"reset_mask": np.array([False, True, True])})
    assert envs.step(["go"] * 3)[1].tolist() == [0.25] * 3


class Closes(Fragile):
    """A world that tells whether it was closed, and may not like it."""

    closed = 0

    def close(self):
        Closes.closed += 1
        if Closes.closed > 1:
            raise OSError("the door sticks")


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_a_slot_that_failed_is_closed_before_it_is_rebuilt(executor, caplog):
    Closes.closed = 0
    envs = vector(Closes, 2, executor=executor)
    envs.reset(seed=0)
    envs.step(["boom", "go"])
    assert Closes.closed == 1
    envs.step([None, "boom"])
    assert Closes.closed == 2
    said = "slot 1 failed, and closing it failed too: OSError: the door sticks"
    assert [one.getMessage() for one in caplog.records] == [said]


def test_a_rebuilt_slot_draws_on_as_the_old_one_would():
    envs, twin = vector(Fragile, 1), vector(Fragile, 1)
    for one, action in ((envs, "boom"), (twin, "end")):
        one.reset(seed=4)
        one.step([action])
    assert [envs.reset()[0] for _ in range(5)] == [twin.reset()[0] for _ in range(5)]


def test_a_late_slot_times_out_and_its_siblings_go_on():
    Fragile.release.clear()
    envs = vector(Fragile, 3, executor="threads", workers=1, env_timeout=0.05)
    envs.reset(seed=0)
    _, _, _, truncated, infos = envs.step(["go", "hang", "go"])
    Fragile.release.set()
    assert truncated.tolist() == [False, True, False]
    assert infos["stop_reason"].tolist() == [None, "timeout", None]
    assert infos["reward_valid"].tolist() == [True, False, True]
    assert infos["env_ms"][1] >= 50
    assert "env_timeout" in infos["reward_error"][1]


def test_stepping_a_finished_slot_raises_before_anything_moves():
    envs = vector(say, 2)
    envs.reset(seed=0)
    envs.step(["x", None])
    with pytest.raises(EpisodeOverError, match="slot 0"):
        envs.step(["x", "x"])
    obs, _, terminated, _, infos = envs.step([None, "x"])
    assert obs[0] is None
    assert terminated.tolist() == [False, True]
    assert infos["turn"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"indexes": [0]}, "did you mean 'indices'"),
        ({"indices": [0, 1, 2]}, "one value for each of 4 groups"),
        ({"indices": [0], "group_size": 2}, "one value for each of 2 groups"),
        ({"group_size": 3}, "group_size must divide the 4 slots"),
        ({"indices": [0] * 4, "levels": [0] * 4}, "one of indices, tasks, levels"),
        ({"reset_mask": np.zeros(4, dtype=bool)}, "reset_mask"),
        ({"reset_mask": np.ones(3, dtype=bool)}, "reset_mask"),
        ({"reset_mask": np.ones(4)}, "float64"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, match):
    with pytest.raises(EnvContractError, match=match):
        vector(say, 4).reset(options=options)


def test_calls_that_do_not_fit_are_refused():
    envs = vector(say, 2)
    with pytest.raises(ResetNeeded, match="reset"):
        envs.step(["x", "x"])
    envs.reset(seed=0)
    with pytest.raises(EnvContractError, match="one action for each of 2"):
        envs.step(["x"])
    with pytest.raises(EnvContractError, match="a list of actions; got the text 'xy'"):
        envs.step("xy")
    with pytest.raises(EnvContractError, match="text"):
        envs.step(["x", 3])
    with pytest.raises(EnvContractError, match="seed"):
        envs.reset(seed=[1])
    with pytest.raises(EnvContractError, match="step_async"):
        envs.step_wait()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"executor": "rockets"}, "executor"),
        ({"memory_gb": 1.0}, "memory_gb needs"),
        ({"executor": "processes", "memory_gb": 0.0}, "memory_gb must be above 0"),
        ({"env_timeout": 0.0}, "env_timeout must be above 0"),
        ({"workers": 2}, "threads"),
        ({"executor": "threads", "workers": 0}, "workers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kwargs, match):
    with pytest.raises(EnvContractError, match=match):
        vector(say, 2, **kwargs)


def test_slots_need_equal_spaces_and_halves():
    with pytest.raises(EnvContractError, match="one slot"):
        LLMVectorEnv([])
    with pytest.raises(EnvContractError, match="TimeLimit"):
        vector(partial(gym.make, "CartPole-v1"), 2)


def test_a_reward_of_the_wrong_length_is_broken():
    class Short(Reward):
        name = "short"

        def score(self, samples):
            return [0.0]

    envs = vector(partial(say, Short()), 3)
    envs.reset(seed=0)
    with pytest.raises(RewardError, match="1 values for 3 samples"):
        envs.step(["a"] * 3)
