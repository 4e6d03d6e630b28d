"""The contract passes sound environments and refuses planted ones, one for each of its lines."""

from pathlib import Path

import gymnasium as gym
import pytest

import llmgym
from llmgym import laws
from llmgym.check import check
from llmgym.laws import LAWS

HERE = Path(__file__).parent

PLANTED = [
    ("TruncatesAtOnce", "gymnasium: ", "truncates after 1 step"),
    ("SharesMessages", "fresh data: ", "share a message dict"),
    ("OverridesStep", "final methods: ", "overrides step"),
    ("wraps_step", "final methods: ", "StepWrapper overrides step"),
    ("CursorOverTasks", "seeds: ", "keep no cursor"),
    ("HoldsALambda", "pickles: ", "top of a module"),
    ("ForgetsItsState", "pickles: ", "plays on differently"),
    ("RaisesOnEmpty", "actions: ", "an empty action raises IndexError"),
    (
        "fails_on_junk",
        "rewards: ",
        "failed on 5 of 11 episodes, first on an empty action: KeyError",
    ),
    ("shifts_in_float32", "scores: ", "a batch scores differently"),
    ("ranks_the_batch", "scores: ", "a batch scores differently"),
    ("keeps_the_last_score", "scores: ", "last_score"),
    ("reads_the_slot", "scores: ", "another slot"),
    ("vector_differs", "vector: ", "differs from one alone"),
    ("WrongSolution", "bounds: ", "solve() earns 0.0"),
    ("pays_for_junk", "bounds: ", "above the floor"),
    ("pays_too_much", "bounds: ", "outside of reward_bounds"),
    ("GlobalRandom", "global random: ", "self.np_random"),
    ("GlobalNumpy", "global random: ", "self.np_random"),
    ("SharedState", "slots: ", "another slot plays"),
]


@pytest.mark.parametrize("id", llmgym.ids())
def test_every_id_keeps_the_contract(id):
    assert check(id, episodes=8) == []


SOUND = [
    *("planted.py:sound", "planted.py:Plain", "planted.py:rounds_in_float32", "toys.py:guess"),
]


@pytest.mark.parametrize("name", SOUND)
def test_sound_environments_pass(name, registered):
    assert check(registered(f"{HERE}/{name}")) == []


@pytest.mark.parametrize(("name", "law", "says"), PLANTED, ids=[row[0] for row in PLANTED])
def test_a_planted_environment_is_refused_with_what_to_change(name, law, says, registered):
    lines = check(registered(f"{HERE}/planted.py:{name}"), episodes=6)
    found = [line for line in lines if line.startswith(law)]
    assert found, lines
    assert any(says in line for line in found), lines


def test_a_reward_of_ones_own_is_not_held_to_the_bounds_of_the_environments(registered):
    id = registered(f"{HERE}/planted.py:sound")
    assert check(id, episodes=3, reward=f"{HERE}/planted.py:sevens") == []


def test_an_environment_that_does_not_build_is_one_line(registered):
    (line,) = check(registered(f"{HERE}/planted.py:DoesNotBuild"))
    assert line.startswith("builds: OSError: the model is not there. Every id must build")


def test_train_and_held_out_tasks_must_not_overlap(registered):
    id = registered(f"{HERE}/planted.py:sound")
    (line,) = check(id, held_out={"system": "the same tasks"})
    assert line.startswith("disjoint: TaskSourceError: 3 of 3 held-out tasks are also in train")
    assert check("llmgym/Arithmetic-v0", episodes=4, held_out={"split": "test"}) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "fails_on_junk",
            "rewards: the reward failed on 5 of 25 episodes, first on an empty action",
        ),
        (
            "fails_always",
            "rewards: the reward failed on 25 of 25 episodes, first on an empty action",
        ),
        ("returns_none", "reward: RewardError: "),
        ("wants_numbers", "reward: RewardError: the answer str 'red' of the row 'Say red' of"),
        (
            "PaysNan",
            "rewards: the reward failed on 25 of 25 episodes, first on an empty action: the ",
        ),
    ],
)
def test_a_reward_that_fails_is_one_finding_and_no_warnings(registered, caplog, name, says):
    (line,) = [
        one
        for one in check(registered(f"{HERE}/planted.py:{name}"))
        if not one.startswith(("pickles: ", "specification: "))
    ]
    assert line.startswith(says)
    assert caplog.records == []


def test_a_slow_reset_is_refused(registered, monkeypatch):
    monkeypatch.setattr(laws, "RESET_SECONDS", 0.02)
    lines = check(registered(f"{HERE}/planted.py:SlowReset"), episodes=2)
    assert [line for line in lines if line.startswith("reset time: ")] == lines
    assert lines


def test_a_specification_that_does_not_serialise_is_refused(registered):
    id = registered(f"{HERE}/planted.py:sound")
    gym.registry[id].kwargs["reward"] = llmgym.per_sample(len)
    lines = check(id, episodes=2)
    assert any(line.startswith("specification: ") for line in lines), lines


def test_every_law_has_a_planted_offender():
    tried = {law.removesuffix(": ") for _, law, _ in PLANTED}
    assert tried | {"disjoint", "reset time", "specification"} == set(LAWS)
