"""Instructions: each rule against an oracle table, held-out combinations, no pay for tricks."""

from itertools import product

import gymnasium as gym
import numpy as np
import pytest

from llmgym.check import JUNK
from llmgym.envs.instructions import (
    COMBINATIONS,
    HELD_OUT,
    HELD_OUT_TOPICS,
    KINDS,
    MAX_CHARACTERS,
    MIN_WORDS,
    TOPICS,
    USUAL,
    Follows,
    MakePrompt,
    Rule,
    combinations_of,
    words_of,
)
from llmgym.errors import TaskSourceError
from llmgym.messages import Completion, Sample, Task

WATER = Rule("contain", "water")
TWICE = Rule("repeat", "light", 2)
SEVEN = Rule("number", "", 7)
TODAY = Rule("start", "Today")
HOME = Rule("end", "home")
ASK = Rule("question")
TWO, ONE = Rule("sentences", "", 2), Rule("sentences", "", 1)
LONG = Rule("long", "", 4)
LINES = Rule("list", "", 2)
NO_AND = Rule("exclude", "and")
SHORT = Rule("short", "", 3)
NO_COMMA = Rule("no_comma")
LOWER = Rule("lowercase")


@pytest.mark.parametrize(
    ("rule", "text", "holds"),
    [
        (WATER, "Clear water.", True),
        (WATER, "WATER, please", True),
        (WATER, "(water)", True),
        (WATER, "**water**", True),
        (WATER, "the waterfall", False),
        (WATER, "underwater", False),
        (WATER, "water's edge", False),
        (WATER, "salt-water", False),
        (WATER, "wat er", False),
        (WATER, "water_level", True),
        (WATER, "", False),
        (TWICE, "light light", True),
        (TWICE, "Light, and light!", True),
        (TWICE, "light light light", True),
        (TWICE, "light lights lighting", False),
        (SEVEN, "7 birds", True),
        (SEVEN, "It is 7.", True),
        (SEVEN, "17 birds", False),
        (SEVEN, "7th", False),
        (SEVEN, "seven", False),
        (TODAY, "Today we go", True),
        (TODAY, '"today," he said', True),
        (TODAY, "Today's sun", False),
        (TODAY, "And today", False),
        (HOME, "We walk to the home.", True),
        (HOME, "we go to THE HOME!!", True),
        (HOME, 'He said: "the home".', True),
        (HOME, "We walk home.", False),
        (HOME, "the home of all", False),
        (HOME, "home", False),
        (ASK, "Why?", True),
        (ASK, 'He said: "Why?"  ', True),
        (ASK, "Why? Because.", False),
        (ASK, "?", True),
        (ASK, "", False),
        (TWO, "One. Two.", True),
        (TWO, "One! Two", True),
        (TWO, "One... Two?!", True),
        (TWO, 'He said "no." Then he left.', True),
        (TWO, "It costs 3.5 euros. Yes.", True),
        (TWO, "One.", False),
        (TWO, "One. Two. Three.", False),
        (TWO, "One.Two", False),
        (TWO, "One. ...", False),
        (ONE, "One", True),
        (ONE, "", False),
        (LONG, "a b c d", True),
        (LONG, "a b c", False),
        (LONG, "a - b - c", False),
        (LINES, "- one\n- two", True),
        (LINES, "* one\n\n\u2022 two\n", True),
        (LINES, "- one\n- two\n- three", False),
        (LINES, "A list:\n- one\n- two", False),
        (LINES, "-one\n-two", False),
        (LINES, "- \n- ", False),
        (NO_AND, "sand", True),
        (NO_AND, "you And me", False),
        (SHORT, "one two three", True),
        (SHORT, "one two three four", False),
        (NO_COMMA, "a; b", True),
        (NO_COMMA, "a, b", False),
        (NO_COMMA, "1,000", False),
        (NO_COMMA, "a\uff0c b", False),
        (NO_COMMA, "a\u060c b", False),
        (LOWER, "all small 7!", True),
        (LOWER, "One capital", False),
        (LOWER, "\u00c9t\u00e9", False),
        (LOWER, "\u01c5", False),
    ],
)
def test_each_rule_holds_where_a_reader_says_so(rule, text, holds):
    assert rule.holds(text) is holds


def test_words_are_runs_of_letters_and_digits_with_what_joins_them():
    assert words_of("Don\u2019t -- stop, well-known 3rd_place") == [
        *("don't", "stop", "well-known", "3rd", "place")
    ]


def sample(text, *rules, cut=False):
    task = Task(id="x", prompt="p", answer=[[rule.kind, rule.text, rule.number] for rule in rules])
    ends = {"terminated": not cut, "truncated": cut}
    return Sample(task=task, messages=(), response=Completion(text), text=text, **ends)


GOOD = "Clear water runs over the old stones today"


def test_success_is_both_rules_eight_words_and_an_end():
    paid = Follows()
    (score,) = paid.score([sample(GOOD, WATER, NO_COMMA)])
    assert score.value == 1.0
    assert score.parts == dict.fromkeys(
        ("contain", "no_comma", "length", "finished", "success"), 1.0
    )
    for text, rules, cut, lost in (
        (GOOD + ", yes", (WATER, NO_COMMA), False, "no_comma"),
        (GOOD, (WATER, NO_COMMA), True, "finished"),
        (" ".join(GOOD.split()[:-1]), (WATER, NO_COMMA), False, "length"),
        (GOOD + " water" * MAX_CHARACTERS, (WATER, NO_COMMA), False, "contain"),
    ):
        (score,) = paid.score([sample(text, *rules, cut=cut)])
        assert (score.value, score.parts["success"], score.parts[lost]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("cut", [False, True])
def test_partial_pays_half_of_itself_for_one_rule_of_a_whole_answer_and_never_for_a_short_one(cut):
    paid = Follows(partial=0.8)
    texts = [GOOD, GOOD + ", yes", GOOD.replace("water", "tea") + ", yes", "water", ""]
    scores = paid.score([sample(text, WATER, NO_COMMA, cut=cut) for text in texts])
    expected = [0.0] * 5 if cut else [1.0, 0.4, 0.0, 0.0, 0.0]
    assert [score.value for score in scores] == expected


def test_gold_keeps_the_rules_of_every_combination():
    rng = np.random.default_rng(0)
    for split, _ in product(("train", "test"), range(1000)):
        task = MakePrompt(split, tuple(KINDS))(rng, 2)
        rules = [Rule(*entry) for entry in task.answer]
        assert all(rule.holds(task.solution) for rule in rules), task
        assert len(words_of(task.solution)) >= MIN_WORDS, task
        assert all(str(rule) in task.prompt for rule in rules)


def test_every_kind_is_trained_and_held_out_and_no_combination_or_topic_is_both():
    assert set(COMBINATIONS) >= HELD_OUT
    for split in ("train", "test"):
        assert {kind for pair in combinations_of(split, tuple(KINDS)) for kind in pair} == {*KINDS}
        assert {kind for pair in combinations_of(split, USUAL) for kind in pair} == {*USUAL}
    assert not set(combinations_of("train", USUAL)) & set(combinations_of("test", USUAL))
    assert not set(TOPICS) & set(HELD_OUT_TOPICS)
    assert len(USUAL) >= 8


def test_a_held_out_prompt_has_a_combination_and_a_topic_that_are_never_trained_on():
    rng = np.random.default_rng(0)
    trained = [MakePrompt("train", tuple(KINDS))(rng, 2).meta for _ in range(2000)]
    for key in ("combination", "topic"):
        seen = {meta[key] for meta in trained}
        for _ in range(500):
            assert MakePrompt("test", tuple(KINDS))(rng, 2).meta[key] not in seen


def test_no_text_that_knows_nothing_of_its_rules_keeps_two_of_them():
    rng = np.random.default_rng(0)
    for split, _ in product(("train", "test"), range(500)):
        task = MakePrompt(split, tuple(KINDS))(rng, 2)
        for text in JUNK.values():
            rules = [Rule(*entry) for entry in task.answer]
            assert Follows().score([sample(text, *rules)])[0].value == 0.0, (task.prompt, text)


def test_seeds_and_sizes_choose_the_tasks():
    def prompts(**kwargs):
        tasks = gym.make("llmgym/Instructions-v0", **kwargs).unwrapped.tasks
        return [tasks[i].prompt for i in range(20)]

    assert prompts(seed=1) == prompts(seed=1) != prompts(seed=2)
    assert len(gym.make("llmgym/Instructions-v0", size=7).unwrapped.tasks) == 7


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kinds": ["kontain", "start"]}, "no kind of rule is named kontain; there are contain"),
        ({"kinds": ["start"]}, "has two rules of start"),
        ({"kinds": ["contain", "repeat"], "split": "test"}, "no prompt of the split test"),
        ({"partial": 1.5}, r"partial must be in \[0, 1\], got 1.5"),
    ],
)
def test_settings_that_make_no_prompt_are_refused(kwargs, message):
    with pytest.raises(TaskSourceError, match=message):
        gym.make("llmgym/Instructions-v0", **kwargs)


def test_the_rules_of_a_prompt_are_of_the_kinds_asked_for():
    env = gym.make("llmgym/Instructions-v0", kinds=["list", "lowercase", "no_comma"]).unwrapped
    for seed in range(20):
        env.reset(seed=seed)
        assert {entry[0] for entry in env.task.answer} <= {"list", "lowercase", "no_comma"}
