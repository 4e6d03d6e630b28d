"""Readers without their libraries: ids, refusals, random states, and what they share."""

import random
import threading

import gymnasium as gym
import numpy as np
import pytest

import llmgym
from llmgym import registry
from llmgym.adapters import READERS, registration
from llmgym.adapters.random_state import OwnRandom
from llmgym.adapters.reasoning_gym import INDICES, TEST_INDICES, half_of, order_of
from llmgym.adapters.turn_game import TEST_SEEDS, Turn, TurnGame, seeds_of
from llmgym.data.tasks import disjoint
from llmgym.errors import MissingExtraError, PluginError


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.namespace)
def test_every_reader_lists_names_gives_reasons_and_names_what_to_install(reader):
    names, blocked = (registry.load(f"{reader.module}:{name}") for name in ("NAMES", "BLOCKED"))
    assert names
    assert len(set(names)) == len(names)
    assert not set(names) & set(blocked)
    assert all(len(reason) > 10 for reason in blocked.values())
    for name in names:
        registry._check_new(f"{reader.namespace}/{name}", f"{reader.module}:make", {"name": name})


def test_an_id_of_an_absent_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr(registration, "is_installed", lambda reader: False)
    for reader in READERS:
        with pytest.raises(MissingExtraError, match=rf"pip install .*{reader.extra}"):
            llmgym.spec(f"{reader.namespace}/anything")
    with pytest.raises(gym.error.NameNotFound):
        llmgym.spec("other/anything")


def test_an_id_that_is_left_out_says_why(monkeypatch):
    monkeypatch.setattr(registration, "is_installed", lambda reader: True)
    with pytest.raises(PluginError, match=r"rush_hour is not read: the library knows no answer"):
        llmgym.spec("reasoning_gym/rush_hour")
    with pytest.raises(gym.error.NameNotFound, match="'reasoning_gym/no_such_set'"):
        llmgym.spec("reasoning_gym/no_such_set")


def test_installed_libraries_are_registered_without_being_imported(monkeypatch):
    monkeypatch.setattr(registration, "is_installed", lambda r: r.namespace == "reasoning_gym")
    monkeypatch.setattr(registry, "_TAGS", dict(registry._TAGS))
    before = set(gym.registry)
    try:
        registration.register_readers()
        names = registry.load("llmgym.adapters.reasoning_gym:NAMES")
        ids = {f"reasoning_gym/{name}" for name in names}
        assert ids <= set(gym.registry)
        assert ids <= set(llmgym.ids("reasoning_gym"))
        assert len(ids) == 106 - 15
    finally:
        for id in set(gym.registry) - before:
            del gym.registry[id]


def draws():
    return random.random(), float(np.random.random())  # noqa: NPY002


def test_a_random_state_of_its_own_continues_where_it_was_and_leaves_the_global_one_alone():
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = [draws() for _ in range(2)]
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    own, other = OwnRandom(1), OwnRandom(2)
    inside, outside = [], []
    for _ in range(2):
        with own:
            inside.append(draws())
        with other:
            draws()
        outside.append(draws())
    assert outside == expected
    again = OwnRandom(1)
    with again:
        assert [draws() for _ in range(2)] == inside


def test_an_exception_inside_leaves_the_global_state_as_it_was():
    random.seed(5)
    before = random.getstate()

    def fail():
        with OwnRandom(0):
            return random.random() / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert random.getstate() == before


def test_threads_take_turns():
    expected, drawn = [], {}
    for seed in range(4):
        with OwnRandom(seed):
            expected.append([random.random() for _ in range(200)])

    def draw(seed):
        own = OwnRandom(seed)
        drawn[seed] = []
        for _ in range(200):
            with own:
                drawn[seed].append(random.random())

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [drawn[seed] for seed in range(4)] == expected


class Dice:
    """Guess a number from 1 to 6 that `random` throws; three guesses."""

    def begin(self, seed):
        self.number, self.turns = random.randint(1, 6), 0
        return "Guess."

    def turn(self, response):
        self.turns += 1
        right = response == str(self.number)
        return Turn(f"{random.random()}", float(right), right or self.turns == 3, self.turns == 3)

    def solve(self):
        return str(self.number)


def dice(**kwargs):
    return TurnGame(seeds_of("test/Dice", "train", 5), Dice, **kwargs)


def test_a_game_is_a_function_of_its_seed_whatever_plays_beside_it():
    def play(env, others=()):
        env.reset(options={"index": 3})
        texts = []
        for _ in range(3):
            for other in others:
                other.reset(options={"index": 1})
                other.step("0")
            observation, _, terminated, truncated, _ = env.step("0")
            texts.append(observation[-1]["content"])
        assert (terminated, truncated) == (True, False)  # both at once is terminated
        return texts

    alone = play(dice())
    assert play(dice(), [dice(), dice()]) == alone
    assert len(set(alone)) == 3


def test_a_perfect_game_is_paid():
    env = dice()
    for index in range(5):
        env.reset(options={"index": index})
        assert env.step(env.solve())[1:3] == (1.0, True)


def test_seeds_of_splits_are_apart():
    train, test = (seeds_of("test/Dice", split, None) for split in ("train", "test"))
    disjoint(train, test)
    assert len(test) == TEST_SEEDS
    assert train[0].meta["seed"] == TEST_SEEDS
    with pytest.raises(TypeError):
        len(train)
    with pytest.raises(IndexError):
        test[TEST_SEEDS]


def test_another_order_of_indices_visits_each_of_them_once():
    for seed in range(20):
        factor, shift = order_of(seed)
        for count in (INDICES, TEST_INDICES, INDICES - TEST_INDICES):
            assert len({(i * factor + shift) % count for i in range(count)}) == count
    assert order_of(0) == (1, 0)
    assert len({order_of(seed) for seed in range(20)}) == 20


def test_half_of_all_questions_may_be_held_out():
    halves = [half_of(f"question {i}") for i in range(1000)]
    assert 430 < halves.count("test") < 570
