"""Games of deduction and walks: true answers, turns that suffice, pay that falls with turns."""

from itertools import product

import gymnasium as gym
import pytest

from llmgym.envs import mastermind, twenty_questions, wordle
from llmgym.envs.games import InTime, Progress
from llmgym.errors import TaskSourceError
from llmgym.messages import Completion, Sample, Task

GAMES = ("Mastermind", "Wordle", "TwentyQuestions")


def make(name, **kwargs):
    return gym.make(f"llmgym/{name}-v0", **kwargs).unwrapped


def play(env, actions):
    told, over = [], False
    for action in actions:
        assert not over
        observation, reward, over, truncated, _ = env.step(action)
        assert not truncated
        told.append(observation[-1]["content"])
    return told, reward, over


@pytest.mark.parametrize(
    ("guess", "hidden", "expected"),
    [
        ("abc", "abc", (3, 0)),
        ("abc", "cab", (0, 3)),
        ("aab", "abb", (2, 0)),
        ("aaa", "abc", (1, 0)),
        ("abb", "bca", (0, 2)),
        ("def", "abc", (0, 0)),
    ],
)
def test_marks_of_mastermind(guess, hidden, expected):
    assert mastermind.marks(guess, hidden) == expected


def test_marks_of_mastermind_are_symmetric():
    codes = mastermind.codes("abcd", 3)
    for guess, hidden in product(codes, repeat=2):
        assert mastermind.marks(guess, hidden) == mastermind.marks(hidden, guess)


def test_the_first_consistent_code_needs_as_many_turns_as_the_table_says():
    assert {n: mastermind.worst_turns(n) for n in mastermind.LEVELS} == mastermind.PAR


@pytest.mark.parametrize(
    ("guess", "hidden", "expected"),
    [
        ("crane", "crane", "+++++"),
        ("eerie", "there", "?-?-+"),  # two of three e, the last in place
        ("speed", "abide", "--?-?"),
        ("allow", "llama", "?+?--"),
        ("aabbb", "bbaaa", "????-"),
        ("abcde", "fghij", "-----"),
    ],
)
def test_marks_of_words_count_repeated_letters_as_often_as_they_are_there(guess, hidden, expected):
    assert wordle.marks(guess, hidden) == expected


def test_properties_of_things_are_as_in_the_table():
    assert twenty_questions.has("horse", "an animal")
    assert not twenty_questions.has("horse", "round")
    assert twenty_questions.has("moon", "round")
    digits = {digit for row in twenty_questions.TABLE.values() for digit in row}
    assert digits == set("12345678")


@pytest.mark.parametrize("name", GAMES)
def test_the_player_finds_every_candidate_within_par_and_sometimes_needs_all_of_it(name):
    env = make(name, **({"level": 2} if name == "Mastermind" else {}))
    env.reset(seed=3)
    task, most = env.task, 0
    for hidden in env.candidates(task):
        env.reset(options={"task": Task(**{**vars(task), "answer": hidden})})
        turns, over = 0, False
        while not over:
            _, reward, over, truncated, _ = env.step(env.solve())
            turns += 1
            assert not truncated
        assert reward == 1.0
        most = max(most, turns)
    assert most == task.meta["par"]


@pytest.mark.parametrize("name", GAMES)
def test_what_is_no_guess_costs_a_turn_says_so_and_tells_nothing(name):
    env = make(name)
    env.reset(seed=0)
    before = env.solve()
    told, _, over = play(env, ["\x00", ""])
    assert told == [env.expects()] * 2
    assert not over
    assert env.solve() == before
    rest = ["?"] * (env.task.meta["turns"] - 2)
    told, reward, over = play(env, rest)
    assert (reward, over) == (0.0, True)
    assert told[-1] == f"It was {env.shown(env.task.answer)}."


def test_each_turn_beyond_par_costs_its_share():
    task = Task(id="", prompt="", meta={"par": 3, "turns": 5})
    samples = [
        Sample(task=task, messages=(), response=Completion(""), text="", state=Progress(*state))
        for state in ((True, 1), (True, 3), (True, 4), (True, 5), (False, 5))
    ]
    assert InTime(spare=1).score(samples[:3]) == [1.0, 1.0, 0.5]
    assert InTime(spare=3).score(samples) == [1.0, 1.0, 0.75, 0.5, 0.0]


def test_responses_are_read_with_spaces_articles_and_capitals():
    env = make("Mastermind")
    env.reset(seed=0)
    code = env.task.answer
    assert env.read(f" {code[0].upper()} {code[1]}{code[2]}\n") == code
    assert env.read(code + code[0]) is None
    env = make("TwentyQuestions")
    env.reset(seed=0)
    thing = env.task.answer
    for text in (thing, f"It is a {thing}.", f"the {thing}", f"Is it {thing}?"):
        assert env.read(text) == thing
    assert env.read("Is it alive?") == "alive"
    assert env.read("is it an animal?") == "an animal"
    absent = next(one for one in twenty_questions.TABLE if one not in env.task.meta["things"])
    assert env.read(absent) is None


@pytest.mark.parametrize("name", GAMES)
def test_fewer_than_no_spare_turns_are_refused(name):
    with pytest.raises(TaskSourceError, match="spare must be 0 or more"):
        make(name, spare=-1)


def test_a_walk_costs_its_extra_turns_and_blocked_ways_leave_the_walker_where_it_is():
    env = make("TextGridWorld")
    meta = {"size": 3, "start": (0, 0), "goal": (0, 2), "walls": [(1, 1)]}
    task = Task(id="", prompt="p", meta={**meta, "shortest": 2, "turns": 11})

    def walk(ways):
        env.reset(options={"task": task})
        return play(env, ways)

    told, reward, over = walk(["east", "East."])
    assert (reward, over, told[-1]) == (1.0, True, "You are at the goal.")
    assert told[0] == (
        "You are at row 0, column 1. The goal is at row 0, column 2. Blocked: north, south."
    )
    told, reward, _ = walk(["north", "east", "south", "east"])
    assert told[0].startswith("That way is blocked. You are at row 0, column 0.")
    assert told[2].startswith("That way is blocked. You are at row 0, column 1.")
    assert reward == pytest.approx(0.8)
    told, reward, over = walk(["?"] * 11)
    assert told[0].startswith("Answer with north, east, south, west.")
    assert (reward, over) == (0.0, True)


def test_the_first_turn_of_three_decides_and_is_paid_last():
    env = make("DelayedReward")
    for first, paid in (("right", 1.0), ("wrong", 0.0)):
        env.reset(seed=0)
        answer = env.task.answer if first == "right" else "z"
        told, reward, over = play(env, [answer, "z", "z"])
        assert (told[0], reward, over) == ("and?", paid, True)
