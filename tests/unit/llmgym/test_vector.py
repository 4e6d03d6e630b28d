"""N slots: one scorer call, and the same episodes as single environments."""

import gc
import itertools
import pickle
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import llmgym
from llmgym import LLMVectorEnv, SingleTurnEnv
from llmgym.addresses import load
from llmgym.errors import EnvContractError, TaskSourceError
from llmgym.messages import Completion, Task
from llmgym.rewards.base import Reward

TOYS = Path(__file__).parent / "toys.py"
say, guess, Count, Poison, TASKS = (
    load(f"{TOYS}:{name}") for name in ("say", "guess", "Count", "Poison", "TASKS")
)


def vector(make, n, **kwargs):
    return LLMVectorEnv([make] * n, **kwargs)


def solutions(envs):
    return [env.unwrapped.solve() for env in envs.envs]


def rollout(envs, seed, choose, steps=6):
    """Play with NEXT_STEP semantics by hand, so that both kinds of vector see the same calls."""
    obs, _ = envs.reset(seed=seed)
    trace = [list(obs)]
    for step in range(steps):
        actions = [choose(step, slot) for slot in range(envs.num_envs)]
        obs, rewards, terminated, truncated, _ = envs.step(actions)
        trace.append((list(obs), rewards.tolist(), terminated.tolist(), truncated.tolist()))
        over = terminated | truncated
        if over.any():
            obs, _ = envs.reset(options={"reset_mask": over})
            trace.append(list(obs))
    return trace


def words(step, slot):
    if (step + slot) % 4 == 3:
        return Completion("red", finish_reason="length")
    return ("red", "blue", "\u4f60\u597d")[(step * 7 + slot) % 3]


@pytest.mark.parametrize("make", [say, guess], ids=["say", "guess"])
@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_a_vector_plays_as_gymnasiums_own_does(make, executor):
    choose = words if make is say else lambda step, slot: str((step + slot) % 8)
    ours = rollout(vector(make, 5, executor=executor), 11, choose)
    theirs = SyncVectorEnv([make] * 5, autoreset_mode=AutoresetMode.DISABLED)
    assert ours == rollout(theirs, 11, choose)


@pytest.mark.parametrize("id", llmgym.ids())
def test_every_id_plays_as_gymnasiums_own_vector_does(id):
    ours = gym.make_vec(id, num_envs=3)
    theirs = gym.make_vec(
        id,
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
    )
    gold = []
    for seed in range(3):
        env = gym.make(id)
        env.reset(seed=seed)
        gold.append(env.unwrapped.solve() or "nothing")
    answers = [*gold, "42", ""]
    choose = lambda step, slot: answers[(step + slot) % len(answers)]  # noqa: E731
    assert rollout(ours, 0, choose) == rollout(theirs, 0, choose)


def test_one_call_scores_all_slots():
    reward = Count()
    envs = vector(partial(say, reward), 256)
    envs.reset(seed=0)
    _, rewards, *_ = envs.step(solutions(envs))
    assert reward.calls == [256]
    assert rewards.tolist() == [1.0] * 256


def test_a_mixture_of_three_callables_is_three_calls():
    rewards = [Count(), Count(), Count()]
    makers = [partial(say, reward) for reward in rewards]
    envs = LLMVectorEnv([makers[slot % 3] for slot in range(9)])
    envs.reset(seed=0)
    envs.step(["red"] * 9)
    assert [reward.calls for reward in rewards] == [[3], [3], [3]]


def test_scores_come_back_to_their_own_slots():
    makers = [partial(say, Count()), partial(say, Count())]
    envs = LLMVectorEnv([makers[slot % 2] for slot in range(4)])
    envs.reset(options={"indices": [0, 1, 2, 3]})
    _, rewards, *_, infos = envs.step(["red", "x", "\u4f60\u597d", "blue"])
    assert rewards.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert infos["reward/length"].tolist() == [3.0, 1.0, 2.0, 4.0]


def test_only_finished_samples_are_scored_and_idle_slots_are_left_out():
    reward = Count()
    envs = vector(partial(guess, reward=reward), 4)
    envs.reset(options={"tasks": [Task(id=str(i), prompt="", answer=i) for i in range(4)]})
    envs.step(["0", "0", None, "0"])
    assert reward.calls == [1]


def test_a_collective_reward_is_called_even_when_all_slots_idle():
    collective, plain = Count(collective=True), Count()
    for reward in (collective, plain):
        envs = vector(partial(say, reward), 2)
        envs.reset(seed=0)
        envs.step([None, None])
    assert collective.calls == [0]
    assert plain.calls == []


@pytest.fixture
def small_heap():
    """A garbage collection looks at nothing that earlier tests left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_ten_thousand_slots_construct_in_a_second(registered, small_heap):
    ids = [*llmgym.ids(), registered(f"{TOYS}:guess")]
    for id in ids:
        load(gym.registry[id].kwargs["target"])
        began = time.process_time()
        envs = gym.make_vec(id, num_envs=10_000)
        assert time.process_time() - began < 1.0, id
        assert envs.num_envs == 10_000


def test_slots_share_the_rows_of_a_large_source(small_heap):
    rows = TASKS * 5_000
    began = time.process_time()
    envs = vector(partial(SingleTurnEnv, rows, "exact"), 10_000)
    assert time.process_time() - began < 1.0
    assert all(env.tasks is rows for env in envs.envs)


def test_seeds_count_up_and_lists_make_groups_on_equal_prompts():
    envs = vector(say, 4)
    obs, _ = envs.reset(seed=7)
    singles = [say().reset(seed=7 + slot)[0] for slot in range(4)]
    assert list(obs) == singles
    obs, infos = envs.reset(seed=[7, 7, 9, 9])
    assert (obs[0], obs[2]) == (obs[1], obs[3])
    assert infos["task_id"].tolist() == [infos["task_id"][0]] * 2 + [infos["task_id"][2]] * 2


def test_indices_are_given_to_groups_of_neighbours():
    envs = vector(say, 6)
    _, infos = envs.reset(options={"indices": [2, 0, 3], "group_size": 2})
    assert infos["task_id"].tolist() == ["t2", "t2", "t0", "t0", "t3", "t3"]
    assert infos["group"].tolist() == [0, 0, 2, 2, 4, 4]
    _, infos = envs.reset(options={"tasks": [TASKS[1]], "group_size": 6})
    assert set(infos["task_id"]) == {"t1"}
    _, infos = envs.reset(seed=0, options={"levels": [0, 1], "group_size": 3})
    assert set(infos["task_id"][:3]) < {"t0", "t2"}
    assert set(infos["task_id"][3:]) < {"t1", "t3"}


@pytest.mark.parametrize("seed", [None, 5])
def test_a_group_without_indices_draws_one_task(seed):
    envs = gym.make_vec("llmgym/Arithmetic-v0", num_envs=6)
    _, infos = envs.reset(seed=seed, options={"group_size": 3})
    ids = infos["task_id"].tolist()
    assert ids == [ids[0]] * 3 + [ids[3]] * 3
    assert ids[0] != ids[3]


def test_samples_know_their_group():
    seen = []

    class Spy(Reward):
        name = "spy"

        def score(self, samples):
            seen.extend(sample.group for sample in samples)
            return [0.0] * len(samples)

    envs = vector(partial(say, Spy()), 4)
    envs.reset(options={"indices": [1, 1], "group_size": 2})
    envs.step(["a"] * 4)
    envs.reset(options={"indices": [3, 1, 3, 0]})
    envs.step(["a"] * 4)
    assert seen == [0, 0, 2, 2, 0, 1, 0, 3]


def test_infos_have_one_type_each():
    envs = vector(partial(say, Poison()), 4)
    envs.reset(options={"indices": [0, 1, 2, 3]})
    *_, infos = envs.step(["boom", "pass", "red", None])
    assert infos["reward_valid"].dtype == np.bool_
    assert infos["reward_valid"].tolist() == [False, False, True, True]
    assert infos["reward_error"][0].startswith("ValueError: the grader broke")
    assert infos["reward_error"][1].startswith("the reward abstained")
    assert infos["reward_error"][2:].tolist() == [None] * 2
    assert infos["stop_reason"].tolist() == ["answered", "answered", "answered", None]
    assert infos["task_id"].dtype == infos["task"].dtype == np.dtype(object)
    assert infos["turn"].tolist() == [1, 1, 1, 0]
    assert infos["env_ms"].dtype == infos["score_ms"].dtype == np.float64
    assert infos["score_ms"][3] == 0.0
    assert infos["score_ms"][2] > 0.0


def test_absent_parts_are_nan_and_present_ones_are_numbers():
    envs = LLMVectorEnv([say, guess, say])
    envs.reset(seed=0)
    *_, infos = envs.step(["red", "9", None])
    part = infos["reward/length"]
    assert part.dtype == np.float32
    assert part[0] == 3.0
    assert np.isnan(part[1:]).all()


def test_a_masked_reset_leaves_the_other_slots_alone():
    envs = vector(guess, 3)
    envs.reset(seed=0)
    before = envs.step(["9", "9", "9"])[0]
    mask = np.array([True, False, False])
    obs, infos = envs.reset(seed=5, options={"reset_mask": mask})
    assert len(obs[0]) == 1
    assert obs[1:] == before[1:]
    assert obs[1][0] is not before[1][0]
    assert infos["turn"].tolist() == [0, 1, 1]
    assert len(envs.step(["9", "9", "9"])[0][1]) == 5


def test_a_terminal_observation_is_not_lost():
    envs = vector(say, 1)
    envs.reset(options={"indices": [0]})
    obs, *_ = envs.step(["red"])
    assert obs[0][-1] == {"role": "assistant", "content": "red"}


def test_the_tasks_are_open_to_a_sampler():
    envs = vector(say, 2)
    assert envs.num_tasks() == 4
    assert [task.id for task in envs.tasks([3, 0])] == ["t3", "t0"]
    with pytest.raises(TaskSourceError, match="received 4"):
        envs.tasks([4])
    assert vector(guess, 1).num_tasks() is None
    mixed = LLMVectorEnv([say, guess])
    assert mixed.num_tasks() == 4
    with pytest.raises(EnvContractError, match="several sources"):
        mixed.tasks([0])


def test_async_steps_are_the_same_steps():
    envs, twin = vector(say, 2), vector(say, 2)
    envs.reset(seed=0)
    twin.reset(seed=0)
    envs.step_async(["red", "blue"])
    assert envs.step_wait()[1].tolist() == twin.step(["red", "blue"])[1].tolist()


def test_gymnasium_makes_all_three_kinds_of_vector():
    envs = gym.make_vec("llmgym/Arithmetic-v0", num_envs=3, digits=1)
    assert isinstance(envs, LLMVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert envs.spec.id == "llmgym/Arithmetic-v0"
    sync = gym.make_vec("llmgym/Arithmetic-v0", num_envs=3, vectorization_mode="sync", digits=1)
    assert isinstance(sync, SyncVectorEnv)
    assert list(envs.reset(seed=1)[0]) == list(sync.reset(seed=1)[0])
    envs.close()
    sync.close()
    with pytest.raises(EnvContractError, match="max_turns"):
        gym.make_vec("llmgym/Arithmetic-v0", num_envs=3, max_episode_steps=3)


def test_samples_of_the_batched_action_space_can_be_played():
    envs = vector(say, 3)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    obs, *_ = envs.step(envs.action_space.sample())
    assert obs in envs.observation_space


def test_a_vector_renders_every_slot():
    envs = vector(partial(say, render_mode="ansi"), 2)
    envs.reset(options={"indices": [0, 1]})
    assert envs.render() == ("[user] Say red", "[user] Say caf\u00e9")


def test_a_vector_of_importable_parts_pickles():
    envs = gym.make_vec("llmgym/Arithmetic-v0", num_envs=2)
    envs.reset(seed=0)
    copy = pickle.loads(pickle.dumps(envs))
    actions = solutions(envs)
    assert copy.step(actions)[1].tolist() == envs.step(actions)[1].tolist() == [1.0, 1.0]


def test_gymnasiums_statistics_work_on_a_vector():
    envs = gym.wrappers.vector.RecordEpisodeStatistics(vector(partial(say, Poison()), 2))
    envs.reset(seed=0)
    *_, infos = envs.step(["boom", "x"])
    assert infos["episode"]["r"].tolist() == [0.0, 1.0]


def test_order_of_slots_does_not_depend_on_the_number_of_threads():
    traces = []
    for workers in (1, 3, 8):
        envs = vector(guess, 8, executor="threads", workers=workers)
        traces.append(rollout(envs, 3, lambda step, slot: str((step * 3 + slot) % 8)))
    assert all(a == b for a, b in itertools.pairwise(traces))
