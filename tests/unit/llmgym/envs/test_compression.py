import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from llmgym.compression.problem import TableProblem, write_problem
from llmgym.envs.compression import EPS, GRID, PRIOR, Compression
from llmgym.errors import EnvContractError, EpisodeOverError, TaskSourceError
from tests.unit.llmgym.compression.random_problems import every_plan, random_table

ID = "llmgym/Compression-v0"


class Interacting:
    """A problem whose KL is more than the sum of its table."""

    def __init__(self, table):
        self.inner, self.table = TableProblem(table), table
        self.calls = 0

    def evaluate(self, choices):
        self.calls += len(choices)
        return self.inner.evaluate(choices) ** 1.5 + 0.1 * (choices[:, 0] == choices[:, 1])

    def seed(self, budget):
        return self.inner.seed(budget)


def env_of(seed=0, *, kinds=1, global_actions=(), problem=Interacting, **settings):
    table = random_table(seed, kinds=kinds, global_actions=global_actions)
    settings.setdefault("budget_range", (0.6, 0.95))
    settings.setdefault("budgets", table.cost_names)
    return Compression(problem(table), **settings)


def played(env, rng, seed, options=None):
    """The return and the last info of an episode of random actions."""
    obs, info = env.reset(seed=seed, options=options)
    assert env.observation_space.contains(obs)
    total, over = 0.0, False
    while not over:
        allowed = info["action_mask"]
        action = int(rng.integers(len(allowed)))
        obs, reward, over, truncated, info = env.step(action)
        assert env.observation_space.contains(obs)
        assert info["clamped"] == (not allowed[action])
        assert not truncated
        total += reward
    return total, info


@pytest.mark.filterwarnings("error")
def test_the_environment_builds_without_arguments_and_passes_the_checker():
    env = gym.make(ID)
    check_env(env.unwrapped, skip_render_check=True)
    assert len(env.unwrapped.observation_names) == env.observation_space.shape[0]
    assert 25 <= len(env.unwrapped.observation_names) <= 45
    assert len(set(env.unwrapped.observation_names)) == len(env.unwrapped.observation_names)


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("global_actions", [(), (2, 3)])
def test_random_actions_never_break_the_budget_and_are_clamped_where_needed(kinds, global_actions):
    rng = np.random.default_rng(0)
    clamped = 0
    for seed in range(50):
        env = env_of(seed, kinds=kinds, global_actions=global_actions)
        for episode in range(3):
            env.reset(seed=episode)
            over = False
            while not over:
                *_, over, _, info = env.step(int(rng.integers(4)))
                clamped += info["clamped"]
            budget = env._limits()
            assert (info["cost"] <= budget * (1 + 1e-9)).all()
    assert clamped > 50


def test_shaping_moves_every_return_by_the_same_number():
    rng = np.random.default_rng(0)
    plain, shaped = env_of(1, shaping=False), env_of(1, shaping=True)
    differences = []
    for _ in range(30):
        options = {"budget": 0.8}
        plain.reset(options=options)
        shaped.reset(options=options)
        totals, over = np.zeros(2), False
        while not over:
            action = int(rng.integers(4))
            steps = [env.step(action) for env in (plain, shaped)]
            totals += [step[1] for step in steps]
            over = steps[0][2]
            assert over or steps[0][1] == 0.0  # paid at the end alone
        differences.append(totals[1] - totals[0])
    assert np.ptp(differences) < 1e-9
    assert abs(differences[0]) < 1e-9


@pytest.mark.parametrize("global_actions", [(), (2, 2)])
def test_the_best_additive_plan_earns_the_most_where_the_kl_is_additive(global_actions):
    env = env_of(2, problem=TableProblem, global_actions=global_actions)
    for share in (0.65, 0.8):
        limit = None
        returns = {}
        for plan in every_plan(env._table):
            env.reset(options={"budget": share})
            limit = env._limits()
            if (env._table.cost(plan) > limit).any():
                continue
            total, clamped = 0.0, False
            for action in plan:
                _, reward, _, _, info = env.step(int(action))
                total, clamped = total + reward, clamped or info["clamped"]
            assert not clamped
            returns[tuple(plan)] = total
        best = tuple(env.problem.seed(limit))
        assert returns[best] == pytest.approx(max(returns.values()))
        assert returns[best] == pytest.approx(0.0, abs=1e-9)


def test_the_reward_compares_with_the_seed_of_the_same_budget():
    env = env_of(3, shaping=False)
    rng = np.random.default_rng(0)
    total, info = played(env, rng, 0, {"budget": 0.7})
    seed = env.problem.seed(env._limits())
    kl, seed_kl = env.problem.evaluate(np.array([info["plan"], seed]))
    assert total == pytest.approx(np.log(EPS + seed_kl) - np.log(EPS + kl))


def test_without_a_seed_there_is_no_prior_and_no_comparison():
    env = env_of(3, problem=lambda table: TableProblem(table, seeds=False), shaping=False)
    total, info = played(env, np.random.default_rng(0), 0, {"budget": 0.7})
    assert total == pytest.approx(-np.log(EPS + env.problem.evaluate(info["plan"][None])[0]))
    assert not env.reset()[1]["action_prior"].any()


def test_the_prior_is_the_seeds_action_and_is_left_out_when_asked():
    env = env_of(4)
    _, info = env.reset(options={"budget": 0.8})
    seed = env.problem.seed(env._limits())
    for action in seed:
        assert info["action_prior"].tolist() == [PRIOR * (k == action) for k in range(4)]
        assert info["action_prior"].dtype == np.float32
        assert info["action_mask"][action]
        *_, info = env.step(int(action))
    assert not env_of(4, prior=False).reset()[1]["action_prior"].any()


def test_budgets_are_drawn_from_a_grid_and_fixed_by_options():
    env = env_of(5, kinds=2)
    shares = set()
    for seed in range(200):
        env.reset(seed=seed)
        shares.add(tuple(np.round(env._budget / env._dense, 6)))
    assert 5 < len(shares) <= GRID
    env.reset(options={"budget": {"latency": 0.7, "bytes": 0.9}})
    assert env._limits() == pytest.approx(np.array([0.7, 0.9]) * env._table.dense)
    limited = env_of(5, kinds=2, budgets=("bytes",))
    limited.reset(options={"budget": 0.8})
    assert np.isinf(limited._limits()[0])
    names = limited.observation_names
    obs, _ = limited.reset(options={"budget": 0.8})
    assert obs[names.index("budget_bytes")] == pytest.approx(0.8)
    assert obs[names.index("budget_latency")] == 0.0


def test_a_budget_that_no_plan_meets_is_refused_with_the_least_that_can():
    env = env_of(6)
    least = float((env._mask.least / env._dense).min())
    with pytest.raises(TaskSourceError, match=rf"least that a plan can have: latency {least:.3f}"):
        env.reset(options={"budget": least * 0.9})
    with pytest.raises(TaskSourceError, match=r"meets a budget of 1e-06 of the dense model"):
        env_of(6, budget_range=(1e-7, 1e-6))
    with pytest.raises(TaskSourceError, match="budget_range must be 0 < low <= high"):
        env_of(6, budget_range=(0.9, 0.5))
    with pytest.raises(TaskSourceError, match="options budget must name latency"):
        env.reset(options={"budget": {"bytes": 0.5}})


def test_the_same_seed_gives_the_same_episode_and_a_copy_continues_it():
    ours, theirs = env_of(7), env_of(7)
    for env in (ours, theirs):
        env.reset(seed=11)
    ours.step(1), theirs.step(1)
    copied = pickle.loads(pickle.dumps(ours))
    obs, reward, _, _, info = ours.step(2)
    for env in (theirs, copied):
        again = env.step(2)
        np.testing.assert_array_equal(obs, again[0])
        assert reward == again[1]
        np.testing.assert_array_equal(info["action_mask"], again[4]["action_mask"])


def test_a_seed_plan_is_evaluated_once_per_budget():
    env = env_of(8)
    rng = np.random.default_rng(0)
    for _ in range(5):
        played(env, rng, 0, {"budget": 0.8})
    assert env.problem.calls == 5 + 1


def test_a_finished_plan_is_not_continued():
    env = env_of(9)
    with pytest.raises(EpisodeOverError, match="the plan is complete"):
        env.step(0)


def test_another_problem_file_is_read_and_a_wrong_setting_named(tmp_path):
    table = random_table(3)
    write_problem(tmp_path / "mine.npz", table)
    file = str(tmp_path / "mine.npz")
    env = gym.make(ID, problem=file, budgets=["latency"], budget_range=[0.6, 0.9]).unwrapped
    assert env._table.name == "random 3"
    with pytest.raises(EnvContractError, match="did you mean 'problem'"):
        gym.make(ID, problm="x")
