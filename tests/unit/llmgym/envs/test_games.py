"""GuessNumber: bisection against every number, honest hints, mediocre demonstrations."""

import gymnasium as gym
import numpy as np
import pytest

from llmgym.envs.games import HIGHEST, LEVELS, InTime, Progress, split_of
from llmgym.errors import TaskSourceError
from llmgym.messages import Completion, Sample, Task


def make(**kwargs):
    return gym.make("llmgym/GuessNumber-v0", **kwargs).unwrapped


def game(low=211, number=214, level=3, spare=0):
    guesses = level + spare
    meta = {"low": low, "high": low + 2**level - 2, "guesses": guesses}
    return Task(id=f"{low:x}{number:x}", prompt="p", answer=number, level=level, meta=meta)


def play(env, guesses):
    """The replies and the rewards of guesses, to the end of the episode."""
    said, paid, over = [], [], False
    for guess in guesses:
        assert not over
        obs, reward, over, truncated, _ = env.step(guess)
        assert not truncated
        said.append(obs[-1]["content"] if obs[-1]["role"] == "user" else None)
        paid.append(reward)
    return said, paid, over


@pytest.mark.parametrize("level", LEVELS)
def test_bisection_finds_every_number_of_a_range_in_as_many_guesses_as_its_level(level):
    env, most = make(level=level), 0
    for number in range(211, 211 + 2**level - 1):
        env.reset(options={"task": game(number=number, level=level)})
        turns, over = 0, False
        while not over:
            _, reward, over, truncated, _ = env.step(env.solve())
            assert not truncated
            turns += 1
        assert reward == 1.0
        most = max(most, turns)
    assert most == level


def test_hints_are_true_and_a_game_ends_by_its_own_rule():
    env = make(level=3)
    env.reset(options={"task": game(number=214)})
    said, paid, over = play(env, ["213", "215", "216"])
    assert said == ["Higher.", "Lower.", "It was 214."]
    assert (paid, over) == ([0.0] * 3, True)
    env.reset(options={"task": game(number=214)})
    assert play(env, [" 213 ", "214"]) == (["Higher.", None], [0.0, 1.0], True)


@pytest.mark.parametrize("junk", ["", "no", "-214", "210", "218", "99999", "\u0662", "2 14"])
def test_what_is_no_number_of_the_range_costs_a_guess_and_says_so(junk):
    env = make(level=3)
    env.reset(options={"task": game(number=214)})
    said, _, over = play(env, [junk, junk])
    assert (said, over) == (["A number from 211 to 217, please."] * 2, False)
    assert env.solve() == "214", "nothing was learned from it"


def test_each_guess_beyond_those_of_bisection_costs_its_share():
    wins = []
    for wrong in range(6):
        env = make(level=3, spare=3)
        env.reset(options={"task": game(number=214, spare=3)})
        wins.append(sum(play(env, ["211"] * wrong + ["214"])[1]))
    assert wins == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    env.reset(options={"task": game(number=214, spare=3)})
    assert play(env, ["211"] * 6)[1] == [0.0] * 6


def test_the_reward_is_a_function_of_the_sample():
    task = game(level=3, spare=1)
    samples = [
        Sample(task=task, messages=(), response=Completion(""), text="", state=Progress(*state))
        for state in ((True, 3), (True, 4), (False, 4))
    ]
    assert InTime(spare=1).score(samples) == [1.0, 0.5, 0.0]


def test_no_range_is_in_both_splits_and_each_hides_any_of_its_numbers():
    ranges = {}
    for split in ("train", "test"):
        tasks = [make(split=split, size=2000).tasks[i] for i in range(2000)]
        ranges[split] = {task.meta["low"] for task in tasks}
        for task in tasks:
            low, high = task.meta["low"], task.meta["high"]
            assert split_of(low, high) == split
            assert low <= task.answer <= high <= HIGHEST
            assert (low % 10, high - low) == (1, 14)
        hidden = {task.answer - task.meta["low"] for task in tasks}
        assert hidden == set(range(15))
    assert not ranges["train"] & ranges["test"]
    assert len(ranges["test"]) > 15


def test_a_mediocre_player_is_as_often_mediocre_as_it_says_and_always_the_same():
    first = {}
    for skill in (0.0, 0.5, 1.0):
        env = make(level=4, skill=skill)
        guesses = []
        for i in range(400):
            env.reset(options={"index": i})
            guesses.append(int(env.solve()) - env.task.meta["low"])
            assert env.solve() == env.solve()
        first[skill] = np.bincount(guesses, minlength=15) / 400
    assert first[1.0][7] == 1.0
    assert first[0.5][7] == pytest.approx(0.5 + 0.5 / 15, abs=0.08)
    np.testing.assert_allclose(first[0.0], 1 / 15, atol=0.05)
    env.reset(options={"task": game(number=225, level=4)})
    play(env, ["218", "222"])
    assert 223 <= int(env.solve()) <= 225, "it heeds what it was told"


def test_another_level_can_be_asked_for_at_reset():
    env = make(level=2)
    env.reset(seed=0, options={"level": 6})
    turns, over = 0, False
    while not over:
        _, reward, over, truncated, _ = env.step(env.solve())
        turns += 1
    assert (reward, truncated) == (1.0, False)
    with pytest.raises(TaskSourceError, match=r"level must be in \[2, 6\], got 9"):
        env.reset(options={"level": 9})


@pytest.mark.parametrize("bad", [{"level": 1}, {"level": 7}, {"spare": -1}, {"skill": 1.5}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(TaskSourceError, match="must be in"):
        make(**bad)
