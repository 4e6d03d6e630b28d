"""GymText: the inner environment's own returns, ends and randomness, and true words for them."""

import gymnasium as gym
import numpy as np
import pytest

from llmgym.envs import frozen_lake
from llmgym.envs.gym_text import GymText, named_action, shortest_path
from llmgym.errors import EnvContractError, TaskSourceError
from llmgym.messages import Task

ACTIONS = ("left", "right")


class Corridor(gym.Env):
    """Ends at its right end; both flags are set where the last step of `limit` reaches it."""

    observation_space = gym.spaces.Discrete(4)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, limit=3, start=0):
        self.limit, self.start = limit, start

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = self.start, 0
        return self.at, {}

    def step(self, action):
        self.steps += 1
        self.at = max(0, self.at + (1 if action else -1))
        return self.at, -1.0 + 5 * (self.at == 3), self.at == 3, self.steps >= self.limit, {}


class Continuous(Corridor):
    action_space = gym.spaces.Box(-1, 1)


@pytest.fixture(autouse=True)
def corridor():
    for name, made in (("test/Corridor-v0", Corridor), ("test/Continuous-v0", Continuous)):
        gym.register(name, made)
    yield
    for name in ("test/Corridor-v0", "test/Continuous-v0"):
        del gym.registry[name]


def describe(env, observation):
    return f"at {observation}"


def parse(env, text):
    return named_action(ACTIONS, text)


def make(env_id="test/Corridor-v0", meta=None, **kwargs):
    tasks = [Task(id="0", prompt="Walk.", meta={"seed": 0, **(meta or {})})]
    return GymText(env_id, tasks, describe=describe, parse=parse, **kwargs)


def test_a_prompt_is_the_rules_and_the_first_observation_and_replies_are_the_next_ones():
    env = make()
    observation, _ = env.reset(seed=0)
    assert observation[-1]["content"] == "Walk.\n\nat 0"
    observation, reward, *_ = env.step(" Right. ")
    assert (observation[-1]["content"], reward) == ("at 1", -1.0)


@pytest.mark.parametrize(
    ("limit", "actions", "ends", "reason"),
    [
        (3, ["right"] * 3, (True, False), "env_done"),  # inner (True, True) is terminated
        (9, ["right"] * 3, (True, False), "env_done"),
        (2, ["right"] * 2, (False, True), "max_turns"),
    ],
)
def test_terminated_wins_over_truncated_and_a_limit_alone_truncates(limit, actions, ends, reason):
    env = make(meta={"kwargs": {"limit": limit}})
    env.reset(seed=0)
    for action in actions:
        *_, terminated, truncated, info = env.step(action)
    assert (terminated, truncated) == ends
    assert info["stop_reason"] == reason


def test_what_is_no_action_is_answered_costs_its_penalty_and_takes_no_inner_step():
    env = make(penalty=-0.5)
    env.reset(seed=0)
    observation, reward, terminated, *_ = env.step("jump")
    assert (observation[-1]["content"], reward) == ("Answer with one action.", -0.5)
    assert not terminated
    assert env.inner.unwrapped.steps == 0
    env = make(invalid="end")
    env.reset(seed=0)
    assert env.step("jump")[2]


def test_pays_translates_the_inner_reward():
    env = make(pays=lambda reward, terminated: float(terminated))
    env.reset(seed=0)
    assert [env.step("right")[1] for _ in range(3)] == [0.0, 0.0, 1.0]


def test_the_keyword_arguments_of_a_task_build_its_inner_environment():
    env = make()
    tasks = [Task(id=str(n), prompt="", meta={"seed": n, "kwargs": {"start": n}}) for n in (1, 2)]
    for n, task in enumerate(tasks, 1):
        observation, _ = env.reset(options={"task": task})
        assert observation[-1]["content"] == f"at {n}"


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(EnvContractError, match="needs discrete actions"):
        make("test/Continuous-v0").reset(seed=0)
    for bad in ({"invalid": "noop"}, {"penalty": 1.0}):
        with pytest.raises(EnvContractError, match="invalid is"):
            make(**bad)


@pytest.mark.parametrize("slippery", [False, True])
def test_the_same_seed_and_actions_earn_what_the_inner_environment_pays(slippery):
    env = gym.make("llmgym/FrozenLake-v0", map="4x4", slippery=slippery).unwrapped
    inner = gym.make("FrozenLake-v1", map_name="4x4", is_slippery=slippery)
    rng = np.random.default_rng(0)
    for _ in range(30):
        env.reset(seed=0)
        inner.reset(seed=0)
        over = False
        while not over:
            action = int(rng.integers(4))
            _, reward, over, cut, _ = env.step(frozen_lake.ACTIONS[action])
            _, paid, terminated, _, _ = inner.step(action)
            assert (reward, over) == (paid, terminated)
            over = over or cut


def test_the_lake_shows_the_player_the_holes_and_what_happened():
    env = gym.make("llmgym/FrozenLake-v0", map="4x4").unwrapped
    observation, _ = env.reset(seed=0)
    assert observation[-1]["content"].endswith("P F F F\nF H F H\nF F F H\nH F F G")
    assert env.step("down")[0][-1]["content"] == "F F F F\nP H F H\nF F F H\nH F F G"
    observation, reward, terminated, *_ = env.step("right")
    assert (observation[-1]["content"], reward) == ("You fell into a hole.", 0.0)
    assert terminated


def test_the_shortest_path_of_the_own_map_has_six_steps_and_none_is_known_on_slippery_ice():
    inner = gym.make("FrozenLake-v1", is_slippery=False).unwrapped
    assert len(shortest_path(inner.P, 0, lambda reward, _: reward > 0)) == 6
    assert shortest_path(inner.P, 0, lambda reward, _: reward > 1) is None
    assert frozen_lake.path_length(("SFFF", "FHFH", "FFFH", "HFFG")) == 6
    assert frozen_lake.path_length(("SH", "HG")) == float("inf")
    env = gym.make("llmgym/FrozenLake-v0", slippery=True).unwrapped
    env.reset(seed=0)
    assert env.solve() is None


@pytest.mark.parametrize("bad", [{"level": 2}, {"level": 9}, {"map": "16x16"}])
def test_lakes_that_do_not_exist_are_refused(bad):
    with pytest.raises(TaskSourceError, match="must be"):
        gym.make("llmgym/FrozenLake-v0", **bad)


def test_lakes_of_every_level_can_be_crossed():
    for level in frozen_lake.LEVELS:
        env = gym.make("llmgym/FrozenLake-v0", level=level).unwrapped
        for seed in range(5):
            env.reset(seed=seed)
            assert len(env.task.meta["kwargs"]["desc"]) == level
            over = False
            while not over:
                _, reward, over, truncated, _ = env.step(env.solve())
                assert not truncated
            assert reward == 1.0
