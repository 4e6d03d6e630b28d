"""Readers with their libraries, each where it is installed: contract, splits, scores, reasons."""

import importlib
import os
import random

import gymnasium as gym
import pytest

from llmgym.adapters.reasoning_gym import BLOCKED, NAMES, NO_GOLD, dataset_of
from llmgym.check import check
from llmgym.data.tasks import disjoint
from llmgym.errors import TaskSourceError

SETS = ("chain_sum", "countdown", "letter_counting", "acre", "power_function", "gsm_symbolic")


def make(id, **kwargs):
    return gym.make(id, **kwargs).unwrapped


@pytest.mark.reasoning_gym
@pytest.mark.parametrize("name", SETS)
def test_data_sets_keep_the_contract(name):
    held_out = {"split": "test", "size": 20}
    assert check(f"reasoning_gym/{name}", episodes=3, held_out=held_out, size=20) == []


@pytest.mark.reasoning_gym
def test_splits_of_a_set_that_repeats_itself_share_no_question():
    train, test = (make("reasoning_gym/chain_sum", split=split) for split in ("train", "test"))
    disjoint(train.tasks, test.tasks, cap=300)
    for seed in (1, 2):
        other = make("reasoning_gym/chain_sum", seed=seed)
        disjoint(other.tasks, test.tasks, cap=100)
        assert other.tasks[0] != train.tasks[0]


@pytest.mark.reasoning_gym
def test_what_an_empty_response_earns_is_the_floor_and_the_answer_earns_one():
    reasoning_gym = importlib.import_module("reasoning_gym")

    dataset = reasoning_gym.create_dataset("power_function", seed=0, size=10)
    assert dataset.score_answer("", dataset[0]) > 0
    env = make("reasoning_gym/power_function")
    for response, paid in ((None, 1.0), ("", 0.0), ("I do not know.", 0.0)):
        env.reset(options={"index": 0})
        assert env.step(env.solve() if response is None else response)[1] == paid


@pytest.mark.reasoning_gym
def test_a_set_that_depends_on_the_hash_seed_asks_for_one(monkeypatch):
    dataset_of.cache_clear()
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(TaskSourceError, match="PYTHONHASHSEED=0"):
        make("reasoning_gym/ransom_note")
    monkeypatch.setitem(os.environ, "PYTHONHASHSEED", "0")
    make("reasoning_gym/ransom_note")


@pytest.mark.reasoning_gym
def test_the_reasons_for_which_sets_are_left_out_are_true():
    reasoning_gym = importlib.import_module("reasoning_gym")
    data_sets = importlib.import_module("reasoning_gym.factory").DATASETS
    assert set(NAMES) | set(BLOCKED) == set(data_sets)
    for name, reason in BLOCKED.items():
        if reason == NO_GOLD:
            assert reasoning_gym.create_dataset(name, seed=0, size=2)[0]["answer"] is None
    halting = reasoning_gym.create_dataset("game_of_life_halting", seed=0, size=5)
    assert {halting.score_answer("no idea", halting[i]) for i in range(5)} == {1.0}
    primes = reasoning_gym.create_dataset("prime_factorization", seed=0, size=1)
    with pytest.raises(ValueError, match="invalid literal"):
        primes.score_answer("no idea", primes[0])


@pytest.mark.gem
@pytest.mark.parametrize("name", ["GuessTheNumber-easy-v0", "Minesweeper-easy-v0"])
def test_games_of_gem_keep_the_contract_and_show_their_board(name):
    assert check(f"gem/{name}", episodes=2, held_out={"split": "test"}) == []
    env = make(f"gem/{name}")
    observation, _ = env.reset(seed=0)
    if name.startswith("Mines"):
        assert observation[-1]["content"].count("#") > 10 or "_ _" in observation[-1]["content"]


@pytest.mark.textarena
@pytest.mark.parametrize("name", ["GuessTheNumber-v0", "Sudoku-very-easy-v0", "2048-v0"])
def test_games_of_textarena_keep_the_contract(name):
    assert check(f"textarena/{name}", episodes=2, held_out={"split": "test"}) == []


@pytest.mark.textarena
def test_a_game_of_textarena_pays_what_the_library_pays():
    textarena = importlib.import_module("textarena")

    env = make("textarena/GuessTheNumber-v0")
    for index in range(5):
        env.reset(options={"index": index})
        game = textarena.make("GuessTheNumber-v0-raw")
        state = random.getstate()
        game.reset(num_players=1, seed=env.task.meta["seed"])
        total, over, guess = 0.0, False, 0
        while not over:
            guess += 1
            _, reward, over, _, _ = env.step(f"[{guess}]")
            total += reward
            done, _ = game.step(f"[{guess}]")
            assert over == done
        assert total == game.close()[0][0]
        random.setstate(state)


@pytest.mark.minigrid
@pytest.mark.parametrize("name", ["GoToRedBall-v0", "PutNextS4N1-v0", "OpenDoorColor-v0"])
def test_levels_of_babyai_keep_the_contract_and_the_bot_solves_them(name):
    assert check(f"minigrid/{name}", episodes=8, held_out={"split": "test"}) == []


@pytest.mark.minigrid
def test_what_is_seen_is_where_the_agent_finds_it():
    env = make("minigrid/GoToRedBallNoDists-v0")
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        for _ in range(40):
            text = observation[-1]["content"]
            if "red ball 1 ahead." in text:
                break
            observation, *_ = env.step(env.solve())
        assert "In front of you: a red ball." in text


@pytest.mark.minigrid
def test_a_detour_does_not_confuse_the_bot():
    env = make("minigrid/GoToRedBall-v0")
    env.reset(seed=3)
    for action in ("left", "left", "forward", "nonsense", "drop"):
        env.step(action)
    total, over = 0.0, False
    while not over:
        _, reward, terminated, truncated, _ = env.step(env.solve())
        total, over = total + reward, terminated or truncated
    assert total == 1.0
