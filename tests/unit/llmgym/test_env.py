"""One environment: episodes, stop reasons, totals, and everything Gymnasium's checker asks."""

import math
import pickle
import random
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import llmgym
from llmgym.addresses import load
from llmgym.env import SingleTurnEnv, inner_env
from llmgym.errors import (
    EnvContractError,
    EpisodeOverError,
    RewardNotFound,
    TaskSourceError,
)
from llmgym.messages import Completion, Message, Sample, StopReason, Task
from llmgym.rewards.base import per_sample

TOYS = Path(__file__).parent / "toys.py"
say, guess, Count, Poison, Guess, Fragile, TASKS = (
    load(f"{TOYS}:{name}")
    for name in ("say", "guess", "Count", "Poison", "Guess", "Fragile", "TASKS")
)


def played(env, action, seed=0):
    env.reset(seed=seed)
    return env.step(action)


@pytest.mark.parametrize("name", ["say", "guess", "Fragile"])
def test_gymnasiums_checker_has_nothing_to_say(name, registered, capsys):
    check_env(gym.make(registered(f"{TOYS}:{name}")).unwrapped)


@pytest.mark.parametrize("id", llmgym.ids())
def test_every_id_passes_gymnasiums_checker(id, capsys):
    check_env(gym.make(id).unwrapped)


def test_a_single_turn_is_prompt_response_score():
    env = say()
    obs, info = env.reset(options={"index": 1})
    assert obs == ({"role": "user", "content": "Say caf\u00e9"},)
    assert info == {"task_id": "t1", "task": "toy", "turn": 0}
    obs, reward, terminated, truncated, info = env.step("caf\u00e9")
    assert obs[1] == {"role": "assistant", "content": "caf\u00e9"}
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {
        "task_id": "t1",
        "task": "toy",
        "turn": 1,
        "reward_valid": True,
        "reward/match": 1.0,
        "reward/length": 4.0,
        "stop_reason": "answered",
    }


def test_values_have_pythons_own_types():
    _, reward, terminated, truncated, info = played(say(), "red")
    assert type(reward) is float
    assert type(terminated) is bool
    assert type(truncated) is bool
    assert type(info["reward_valid"]) is bool


def test_the_system_message_comes_first():
    obs, _ = say(system="Be brief").reset(seed=0)
    assert obs[0] == {"role": "system", "content": "Be brief"}
    assert obs[1]["role"] == "user"


def test_many_turns_end_when_the_world_says_so():
    env = guess()
    env.reset(seed=3)
    for _ in range(4):
        obs, reward, terminated, _, info = env.step(env.solve())
        if terminated:
            break
    assert reward == 1.0
    assert info["stop_reason"] == "env_done"
    assert obs[-1] == {"role": "user", "content": "right"}


def test_max_turns_truncates_and_an_ended_episode_stays_ended():
    env = guess(max_turns=2)
    env.reset(seed=0)
    assert env.step("no")[2:4] == (False, False)
    *_, terminated, truncated, info = env.step("no")
    assert (terminated, truncated, info["stop_reason"]) == (False, True, "max_turns")
    with pytest.raises(EpisodeOverError, match="reset"):
        env.step("no")
    env.reset()
    env.step("no")


def test_a_step_before_a_reset_is_refused():
    with pytest.raises(ResetNeeded, match="reset"):
        say().step("red")


@pytest.mark.parametrize(
    ("finish", "done", "expected"),
    [
        ("stop", False, (False, False, None)),
        ("stop", True, (True, False, StopReason.ENV_DONE)),
        ("length", False, (False, True, StopReason.LENGTH)),
        ("length", True, (False, True, StopReason.LENGTH)),
        ("abort", True, (False, True, StopReason.TIMEOUT)),
    ],
)
def test_the_reason_follows_from_the_finish_and_the_world(finish, done, expected):
    env = Fragile()
    env.reset(seed=0)
    _, _, _, sample = env.advance(Completion("end" if done else "go", finish_reason=finish))
    assert (sample.terminated, sample.truncated, sample.reason) == expected


def test_a_cut_response_is_scored_and_truncates():
    env = say()
    env.reset(options={"index": 0})
    _, reward, terminated, truncated, info = env.step(Completion("red", finish_reason="length"))
    assert (reward, terminated, truncated) == (1.0, False, True)
    assert info["stop_reason"] == "length"


def test_a_sample_carries_its_own_task_dialogue_and_state():
    env = guess()
    env.reset(options={"task": Task(id="g", prompt="", answer=5, source="here")})
    env.step("3")
    _, _, _, sample = env.advance(Completion("7", token_ids=(1, 2), policy_version=4))
    assert isinstance(sample, Sample)
    assert sample.task.source == "here"
    assert sample.messages == (
        Message("user", "Guess a number in [0, 8)"),
        Message("assistant", "3"),
        Message("user", "higher"),
    )
    assert (sample.response, sample.text, sample.turn, sample.state) == ("7", "7", 1, (4, 7))
    assert sample.response.token_ids == (1, 2)


def test_observations_are_new_every_time():
    env = guess()
    first, _ = env.reset(seed=0)
    first[0]["content"] = "changed"
    second = env.step("no")[0]
    assert second[0]["content"] == "Guess a number in [0, 8)"
    second[1]["content"] = "changed"
    assert env.step("no")[0][1]["content"] == "no"


def test_seeds_repeat_and_reset_without_one_goes_on():
    env = say()

    def draws():
        return [env.reset(seed=5)[0], *[env.reset()[0] for _ in range(10)]]

    first = draws()
    assert first == draws()
    assert len({obs[0]["content"] for obs in first}) == len(TASKS)


def test_options_choose_the_task():
    env = say()
    assert env.reset(options={"index": 3})[1]["task_id"] == "t3"
    assert env.reset(options={"task": TASKS[2]})[1]["task_id"] == "t2"
    drawn = {env.reset(options={"level": 1})[1]["task_id"] for _ in range(30)}
    assert drawn == {"t1", "t3"}
    deep = gym.make("llmgym/Arithmetic-v0").unwrapped
    deep.reset(seed=0, options={"level": 6})
    assert deep.task.level == 6


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"idx": 1}, EnvContractError, "task, index, level"),
        ({"index": 1, "level": 1}, EnvContractError, "one option"),
        ({"task": "2+2"}, EnvContractError, "is a Task; received '2\\+2'"),
        ({"index": 4}, TaskSourceError, r"\[0, 4\); received 4"),
        ({"index": -1}, TaskSourceError, "received -1"),
        ({"level": 9}, TaskSourceError, r"levels are \[0, 1\]"),
    ],
)
def test_wrong_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        say().reset(options=options)


def test_wrong_settings_are_refused():
    with pytest.raises(EnvContractError, match="max_turns must be 2 or more"):
        guess(max_turns=1)
    with pytest.raises(EnvContractError, match="render_mode"):
        say(render_mode="rgb_array")
    with pytest.raises(TaskSourceError, match="one task at least"):
        SingleTurnEnv([])
    env = say()
    env.reset(seed=0)
    with pytest.raises(EnvContractError, match="An action is text"):
        env.step(7)


@pytest.mark.parametrize("make", [say, guess])
@given(text=st.text(max_size=30))
def test_any_text_is_a_legal_action(make, text):
    env = make()
    obs, reward, _, _, info = played(env, text)
    assert obs in env.observation_space
    assert math.isfinite(reward)
    assert info["reward_valid"]


def test_a_very_long_action_is_a_legal_action():
    assert played(say(), "(" * 100_000)[1] == 0.0


def test_an_environment_pickles_in_the_middle_of_an_episode():
    env = guess()
    env.reset(seed=3)
    env.step("6")
    copy = pickle.loads(pickle.dumps(env))
    assert copy.step("2") == env.step("2")
    assert copy.reset()[0] == env.reset()[0]
    action = Completion("x", finish_reason="length", token_ids=(3,), policy_version=2)
    back = pickle.loads(pickle.dumps(action))
    assert (back, back.finish_reason, back.token_ids, back.policy_version) == (
        "x",
        "length",
        (3,),
        2,
    )


def test_two_environments_share_no_state():
    alone, mixed, other = guess(), guess(), guess()
    alone.reset(seed=1)
    mixed.reset(seed=1)
    other.reset(seed=2)
    expected = [alone.step("no"), alone.step("2")]
    got = [mixed.step("no")]
    other.step("5")
    other.action_space.seed(1)
    got.append(mixed.step("2"))
    assert got == expected
    assert mixed.action_space is not other.action_space


def test_evaluation_between_steps_leaves_training_alone():
    train, evaluation = say(), say()
    train.reset(seed=0)
    evaluation.reset(options={"index": 3})
    evaluation.step("blue")
    assert train.step(train.solve())[1] == 1.0


def test_nothing_touches_global_randomness():
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    played(guess(), "3")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_render_gives_the_dialogue(capsys):
    env = say(render_mode="ansi")
    env.reset(options={"index": 0})
    env.step("red")
    assert env.render() == "[user] Say red\n\n[assistant] red"
    human = say(render_mode="human")
    human.reset(options={"index": 0})
    assert human.render() is None
    assert "[user] Say red" in capsys.readouterr().out


def test_a_reward_is_resolved_at_the_first_score_only():
    env = say({"name": "no such reward"})
    env.reset(seed=0)
    sample = env.advance("x")[3]
    with pytest.raises(RewardNotFound):
        env.score_batch([sample])


def test_inner_env_looks_below_gymnasiums_checking_wrappers_only():
    env = gym.make("llmgym/Arithmetic-v0")
    assert inner_env(env) is env.unwrapped
    assert isinstance(inner_env(env), SingleTurnEnv)
    with pytest.raises(EnvContractError, match="TimeLimit"):
        inner_env(gym.wrappers.TimeLimit(env, 3))


def test_bounds_are_those_of_the_reward_in_use():
    def bounds(**kwargs):
        return gym.make("llmgym/GuessNumber-v0", **kwargs).unwrapped.reward_bounds

    assert bounds() == (0.0, 1.0)
    assert bounds(reward={"name": "constant", "kwargs": {"value": 3.0}}) == (3.0, 3.0)
    assert bounds(reward=per_sample(lambda sample: 1.0)) == (-math.inf, math.inf)
    assert bounds(reward=per_sample(lambda sample: 1.0), reward_bounds=(0.0, 2.0)) == (0.0, 2.0)
