"""A token per step: Gymnasium's checks, gold spelled out, ends, windows, numbers of tokens."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from llmgym.envs.token import TokenEnv
from llmgym.errors import EnvContractError

ID = "llmgym/Token-v0"


def make(**kwargs):
    return gym.make(ID, **kwargs).unwrapped


def spell(env, text):
    """Write a text and the end; return what the last step gave."""
    for token in [*env.encode(text), env.end]:
        step = env.step(token)
        if step[2] or step[3]:
            break
    return step


@pytest.mark.parametrize("alphabet", ["0123456789 +-*=", None])
def test_gymnasium_finds_no_fault(alphabet):
    check_env(make(alphabet=alphabet))


@pytest.mark.parametrize("alphabet", ["0123456789 +-*=", None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_gold_that_is_spelled_out_earns_the_most(alphabet, split):
    env = make(alphabet=alphabet, split=split)
    for seed in range(50):
        env.reset(seed=seed)
        _, reward, terminated, truncated, info = spell(env, env.env.unwrapped.solve())
        assert (reward, terminated, truncated, info["reward_valid"]) == (1.0, True, False, True)
        env.reset(seed=seed)
        assert spell(env, "")[1] == 0.0


def test_a_response_that_reaches_the_limit_is_cut_and_only_the_last_step_is_paid():
    env = make(max_tokens=3)
    env.reset(seed=0)
    steps = [env.step(1) for _ in range(3)]
    assert [step[1:4] for step in steps] == [
        (0.0, False, False),
        (0.0, False, False),
        (0.0, False, True),
    ]
    assert steps[-1][4]["text"] == "111"


def test_a_window_holds_the_end_of_the_prompt_and_then_what_was_written():
    env = make(max_prompt=4, max_tokens=3)
    window, _ = env.reset(seed=0)
    prompt = env.env.unwrapped.task.prompt
    assert list(window) == [env.pad] * 3 + env.encode(prompt[-4:])
    window, *_ = env.step(env.encode("7")[0])
    assert list(window) == [env.pad] * 2 + env.encode(prompt[-4:] + "7")
    assert window.dtype == np.int64
    assert window in env.observation_space


def test_bytes_of_any_text_come_back_and_characters_that_are_no_tokens_are_seen_as_one():
    env = make(alphabet=None)
    for text in ("caf\u00e9", "\U0001f600", "a\nb"):
        assert env.decode(env.encode(text)) == text
    assert env.action_space.n == 257
    small = make(alphabet="ab")
    assert small.encode("axb") == [0, small.pad, 1]
    assert small.action_space.n == 3


def test_gymnasiums_own_vector_plays_it():
    envs = gym.make_vec(ID, num_envs=3, vectorization_mode="sync")
    windows, _ = envs.reset(seed=0)
    assert windows.shape == (3, 24)
    for _ in range(30):
        windows, rewards, *_ = envs.step(envs.action_space.sample())
    assert np.isfinite(rewards).all()


@pytest.mark.parametrize("bad", [{"max_prompt": 0}, {"max_tokens": 0}, {"alphabet": ""}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(EnvContractError, match="are 1 or more"):
        make(**bad)


def test_an_environment_of_several_turns_is_refused():
    with pytest.raises(EnvContractError, match="tasks of one turn; received GuessNumber"):
        make(env_id="llmgym/GuessNumber-v0")
    with pytest.raises(EnvContractError, match="tasks of one turn"):
        TokenEnv(gym.make("CartPole-v1"))
