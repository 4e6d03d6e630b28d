"""What a step is worth: scores, failures, and rewards of the environment's own."""

import math
from pathlib import Path

import pytest

from llmgym.addresses import load
from llmgym.errors import (
    RewardError,
)
from llmgym.messages import Completion, Score, Task
from llmgym.rewards.base import per_sample

TOYS = Path(__file__).parent / "toys.py"
say, guess, Count, Poison, Fragile = (
    load(f"{TOYS}:{name}") for name in ("say", "guess", "Count", "Poison", "Fragile")
)


def played(env, action):
    env.reset(seed=0)
    return env.step(action)


def test_an_aborted_response_is_worth_nothing_and_not_valid():
    _, reward, _, truncated, info = played(Fragile(), Completion("end", finish_reason="abort"))
    assert (reward, truncated, info["reward_valid"]) == (0.0, True, False)
    assert info["reward_error"] == "the episode ended by timeout"


def test_a_failed_reward_is_a_finite_zero_that_is_not_valid():
    _, reward, terminated, _, info = played(say(Poison()), "boom")
    assert (reward, terminated, info["reward_valid"]) == (0.0, True, False)
    assert info["reward_error"].startswith("ValueError: the grader broke")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_not_valid(value):
    _, reward, *_, info = played(say(per_sample(lambda sample: value)), "x")
    assert reward == 0.0
    assert not info["reward_valid"]


def test_an_episode_that_its_reward_abstained_from_is_not_a_valid_zero():
    _, reward, *_, info = played(say(Poison()), "pass")
    assert (reward, info["reward_valid"]) == (0.0, False)
    assert info["reward_error"] == "the reward abstained from the last response of the episode"


@pytest.mark.parametrize("span", [(-1, 2), (1, 1), (2, 1), (0, 4)])
def test_a_span_outside_of_the_response_is_a_broken_reward(span):
    reward = per_sample(lambda sample: Score(1.0, spans=((*span, 0.5),)))
    with pytest.raises(RewardError, match=r"characters 0 to 3 of the response; got \("):
        played(say(reward), "red")


def test_a_reward_that_returns_none_is_broken():
    with pytest.raises(RewardError, match="None"):
        played(say(per_sample(lambda sample: None)), "x")


def test_the_environments_own_reward_adds_to_the_score():
    reward = Count()
    env = guess(reward=reward)
    env.reset(options={"task": Task(id="g", prompt="", answer=5)})
    assert env.step("7")[1] == 0.0
    assert env.step("5")[1] == 1.0  # the score compares with 5, not "5": only the env pays
    assert reward.calls == [1]  # asked once, at the end


def test_a_reward_per_turn_is_asked_at_every_turn():
    reward = Count(per_turn=True)
    env = guess(reward=reward)
    env.reset(seed=0)
    env.step("no")
    env.step("no")
    assert reward.calls == [1, 1]


def test_a_collective_reward_is_called_with_no_samples():
    reward = Count(collective=True)
    assert say(reward).score_batch([]) == []
    assert reward.calls == [0]
    other = Count()
    assert say(other).score_batch([]) == []
    assert other.calls == []


def test_scores_depend_on_the_samples_alone():
    env = say()
    samples = []
    for index, text in enumerate(["red", "x", "\u4f60\u597d", ""]):
        env.reset(options={"index": index})
        samples.append(env.advance(text)[3])
    together = env.score_batch(samples)
    assert [score.value for score in together] == [1.0, 0.0, 1.0, 0.0]
    assert together == [say().score_batch([sample])[0] for sample in samples]
    assert env.score_batch(samples[::-1]) == together[::-1]
