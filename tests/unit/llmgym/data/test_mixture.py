"""Mixtures and curricula: exact shares, and no task skipped or repeated over a resume."""

import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.data.curriculum import Levels, LevelSampler, LevelSource, with_levels
from llmgym.data.mixture import MixtureSampler, quotas, spread
from llmgym.data.tasks import TaskSampler, from_list, procedural
from llmgym.env import SingleTurnEnv
from llmgym.errors import TaskSourceError
from llmgym.messages import Task

WEIGHTS = st.lists(st.floats(1, 10), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(60, 400))
def test_shares_are_whole_and_exact_and_as_near_to_the_weights_as_can_be(weights, count):
    shares = quotas(weights, count)
    assert sum(shares) == count
    total = sum(map(Fraction, weights))
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(weight) * count / total) < 1


def test_the_largest_remainder_gets_the_rest():
    assert quotas([3, 1], 8) == [6, 2]
    assert quotas([1, 1, 1], 8) == [3, 3, 2]
    assert quotas([5, 3, 1], 10) == [6, 3, 1]  # 5.56, 3.33, 1.11


@pytest.mark.parametrize(
    ("weights", "count", "message"),
    [
        ([1, 0], 4, "must be above 0"),
        ([1, float("nan")], 4, "must be above 0"),
        ([], 4, "must be above 0"),
        ([100, 1], 4, "environment 1 of the mixture would get none"),
    ],
)
def test_weights_that_give_an_environment_nothing_are_refused(weights, count, message):
    with pytest.raises(TaskSourceError, match=message):
        quotas(weights, count)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(2, 8))
def test_every_part_of_a_batch_holds_nearly_its_share(shares, parts):
    envs = spread(shares)
    assert Counter(envs) == dict(enumerate(shares))
    for rank in range(parts):
        low, high = rank * len(envs) // parts, (rank + 1) * len(envs) // parts
        for env, share in enumerate(shares):
            expected = share * (high - low) / len(envs)
            assert abs(envs[low:high].count(env) - expected) <= 2


LENGTHS = {"a": 7, "b": None, "c": 3}
SHARES = [5, 4, 3]
SEED = 11


def made(rank=0, world_size=1):
    samplers = {name: TaskSampler(length, SEED) for name, length in LENGTHS.items()}
    return MixtureSampler(samplers, spread(SHARES), rank=rank, world_size=world_size)


def oracle(batches):
    """Walk each environment's epochs one task at a time, as the definition says."""
    envs, orders = spread(SHARES), {name: [] for name in LENGTHS}
    dealt = []
    for _ in range(batches):
        batch = []
        for env in envs:
            name = list(LENGTHS)[env]
            count, length = len(orders[name]), LENGTHS[name]
            if length is None:
                number = count
            else:
                epoch, place = divmod(count, length)
                number = int(np.random.default_rng((SEED, epoch)).permutation(length)[place])
            orders[name].append(number)
            batch.append(number)
        dealt.append(batch)
    return dealt


def resumed(batches, stops, worlds):
    """Deal batches by runs that end where `stops` says, each at another number of ranks."""
    ranks = [made(rank, worlds[0]) for rank in range(worlds[0])]
    dealt, turn = [], 0
    for batch in range(batches):
        if batch in stops:
            states = [json.loads(json.dumps(sampler.state_dict())) for sampler in ranks]
            assert all(state == states[0] for state in states)
            turn += 1
            size = worlds[turn % len(worlds)]
            ranks = [made(rank, size) for rank in range(size)]
            for sampler in ranks:
                sampler.load_state_dict(states[0])
        dealt.append([n for sampler in ranks for n in sampler.next(12 // len(ranks))])
    return dealt


@given(st.sets(st.integers(1, 19)), st.permutations([1, 2, 3, 4]))
def test_no_task_is_skipped_or_repeated_over_interrupted_runs_at_other_numbers_of_ranks(
    stops, worlds
):
    assert resumed(20, stops, worlds) == oracle(20)


def test_each_task_is_dealt_once_per_epoch_of_its_environment():
    envs, dealt = spread(SHARES), oracle(21)
    for env, (name, length) in enumerate(LENGTHS.items()):
        numbers = [n for batch in dealt for e, n in zip(envs, batch, strict=True) if e == env]
        if length is None:
            assert numbers == list(range(len(numbers)))
            continue
        for start in range(0, len(numbers) - length + 1, length):
            assert sorted(numbers[start : start + length]) == list(range(length)), name


def test_a_state_of_other_environments_is_refused():
    state = made().state_dict()
    other = MixtureSampler({"a": TaskSampler(7, SEED)}, [0] * 12)
    with pytest.raises(TaskSourceError, match="the checkpoint's tasks are of a, b, c"):
        other.load_state_dict(state)
    with pytest.raises(TaskSourceError, match="are of one environment, this run's of a, b, c"):
        made().load_state_dict(TaskSampler(7, SEED).state_dict())
    with pytest.raises(TaskSourceError, match="a batch of the mixture has 12 prompts"):
        made().next(5)


def task(level, number):
    return Task(id=f"{level}.{number}", prompt=f"{level} {number}", answer="1", level=level)


NUMBERS = [(level, number) for number in range(4) for level in (1, 2, 3) if level + number < 6]
TASKS = from_list([task(level, number) for level, number in NUMBERS])
"""Levels 1 and 2 have four tasks, level 3 has three."""


def test_a_source_of_levels_numbers_the_tasks_of_each():
    source = LevelSource(TASKS, [1, 3])
    assert source.sizes() == [4, 3]
    assert len(source) == 8
    assert [source[k].id for k in (0, 2, 4, 6)] == ["1.0", "1.1", "1.2", "1.3"]
    assert [source[k].id for k in (1, 3, 5, 7)] == ["3.0", "3.1", "3.2", "3.0"]
    endless = LevelSource(procedural(make_task, seed=3), [1, 2])
    assert endless.sizes() == [None, None]
    assert endless[5] == procedural(make_task, seed=3, level=2)[2]
    with pytest.raises(TypeError):
        len(endless)
    with pytest.raises(TaskSourceError, match=r"no task has level 9; the levels are \[1, 2, 3\]"):
        LevelSource(TASKS, [1, 9])


def make_task(rng, level):
    return task(level, int(rng.integers(1000)))


def make_env():
    return SingleTurnEnv(TASKS, "exact")


def test_an_environment_is_made_with_the_tasks_of_its_levels():
    env = with_levels(make_env, [3, 2])()
    assert env.reset(options={"index": 1})[0][0]["content"] == "2 0"
    assert env.reset(options={"index": 2})[0][0]["content"] == "3 1"


RULE = Levels((1, 2, 3), up=0.8, down=0.2, window=10)


def level_oracle(earned):
    """Follow the levels from the definition: windows of whole batches of 5 episodes."""
    levels, place, window = [], 0, []
    for share in earned:
        levels.append(place)
        window += [share] * 5
        if len(window) >= 10:
            mean = sum(window) / len(window)
            place += (mean >= 0.8 and place < 2) - (mean <= 0.2 and place > 0)
            window = []
    return levels


SHARE = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


@given(st.lists(SHARE, max_size=30), st.sets(st.integers(0, 29)))
def test_levels_follow_what_was_earned_over_interrupted_runs(earned, stops):
    def fresh():
        return LevelSampler(RULE, [4, 4, 3], SEED)

    sampler, places, dealt = fresh(), [], {0: [], 1: [], 2: []}
    for batch, share in enumerate(earned):
        if batch in stops:
            state = json.loads(json.dumps(sampler.state_dict()))
            sampler = fresh()
            sampler.load_state_dict(state)
        places.append(sampler.place)
        numbers = sampler.next(5)
        assert {n % 3 for n in numbers} == {sampler.place}
        dealt[sampler.place] += [n // 3 for n in numbers]
        sampler.learn(5 * share, 5)
    assert places == level_oracle(earned)
    for place, size in enumerate([4, 4, 3]):  # each level's own tasks, once per epoch
        expected = TaskSampler(size, SEED).next(len(dealt[place]))
        assert dealt[place] == expected


def test_the_mixture_tells_its_curricula_what_was_earned():
    samplers = {"a": TaskSampler(7, SEED), "b": LevelSampler(RULE, [None] * 3, SEED)}
    mixture = MixtureSampler(samplers, [0, 1, 1])
    assert mixture.levels() == {"b": 1}
    mixture.learn({"a": (9.0, 10), "b": (9.0, 10)})
    assert mixture.levels() == {"b": 2}
    again = MixtureSampler(
        {"a": TaskSampler(7, SEED), "b": LevelSampler(RULE, [None] * 3, SEED)}, [0, 1, 1]
    )
    again.load_state_dict(json.loads(json.dumps(mixture.state_dict())))
    assert again.levels() == {"b": 2}
    assert again.next(3) == mixture.next(3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"levels": (1,)}, "two different levels or more"),
        ({"levels": (1, 1)}, "two different levels or more"),
        ({"levels": (1, 2), "up": 0.2, "down": 0.2}, "down < up"),
        ({"levels": (1, 2), "window": 0}, "window of 1 or more"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(kwargs, message):
    with pytest.raises(TaskSourceError, match=message):
        Levels(**kwargs)


def test_a_checkpoint_of_other_levels_is_refused():
    other = LevelSampler(Levels((1, 3)), [None, None], SEED)
    with pytest.raises(TaskSourceError, match=r"the checkpoint's curriculum has levels \[1, 3\]"):
        LevelSampler(RULE, [None] * 3, SEED).load_state_dict(other.state_dict())
