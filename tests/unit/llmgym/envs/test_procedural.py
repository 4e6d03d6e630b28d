"""Drawn tasks: answers recomputed by other means, partial pay, splits by content, levels."""

import json
import re

import gymnasium as gym
import numpy as np
import pytest

from llmgym.data.splits import draw_of_split, split_of_key
from llmgym.envs.countdown import Reached
from llmgym.envs.json_format import Formed, is_same, read_object
from llmgym.envs.sort_words import Sorted
from llmgym.envs.summaries import LIMIT, Facts
from llmgym.envs.word_list import ACCENTED
from llmgym.errors import TaskSourceError
from llmgym.messages import Completion, Sample, Task

LEVELLED = {
    "ChainSum": range(2, 11),
    "Countdown": range(2, 7),
    "JSONFormat": range(1, 9),
    "LetterCount": range(1, 9),
    "Mastermind": range(2, 5),
    "MultiChoice": range(2, 9),
    "ReverseText": range(1, 9),
    "SortWords": range(2, 13),
    "Summarize": range(1, 7),
    "TextGridWorld": range(2, 8),
    "TwentyQuestions": range(2, 17),
    "Wordle": range(3, 17),
}


def make(name, **kwargs):
    return gym.make(f"llmgym/{name}-v0", **kwargs).unwrapped


def tasks(name, count=200, **kwargs):
    source = make(name, **kwargs).tasks
    return [source[i] for i in range(count)]


def scored(reward, text, task):
    sample = Sample(task=task, messages=(), response=Completion(text), text=text)
    (score,) = reward.score([sample])
    return score


@pytest.mark.parametrize("name", LEVELLED)
def test_every_level_can_be_solved_and_no_other_level_exists(name):
    levels = LEVELLED[name]
    env = make(name)
    for level in levels:
        env.reset(seed=level, options={"level": level})
        assert env.task.level == level
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.solve())
            total, over = total + reward, terminated or truncated
        assert total == 1.0, (level, env.task)
    for level in (levels[0] - 1, levels[-1] + 1):
        with pytest.raises(TaskSourceError, match="level must be in"):
            make(name, level=level)
        with pytest.raises(TaskSourceError, match="level must be in"):
            env.reset(options={"level": level})


@pytest.mark.parametrize("name", LEVELLED)
def test_tasks_are_functions_of_seed_and_number_and_of_their_split(name):
    assert tasks(name, 20) == tasks(name, 20)
    assert tasks(name, 20) != tasks(name, 20, seed=1)
    train, test = ({task.id for task in tasks(name, split=split)} for split in ("train", "test"))
    assert not train & test
    assert len(make(name, size=7).tasks) == 7


def test_one_key_in_five_is_held_out_and_settings_without_tasks_are_an_error():
    held_out = sum(split_of_key(str(i)) == "test" for i in range(2000))
    assert 300 < held_out < 500
    key = next(str(i) for i in range(100) if split_of_key(str(i)) == "train")
    assert draw_of_split("train", lambda: (key, 1)) == draw_of_split("all", lambda: (key, 1)) == 1
    with pytest.raises(TaskSourceError, match="too few different tasks"):
        draw_of_split("test", lambda: (key, 1))


def test_sums_are_right():
    for task in tasks("ChainSum", level=5, digits=3):
        words = task.prompt.removesuffix(" =").split()
        total = int(words[0])
        for sign, number in zip(words[1::2], words[2::2], strict=True):
            total += int(number) if sign == "+" else -int(number)
        assert task.answer == total
        assert {len(number) for number in words[::2]} == {3}


def test_a_countdown_is_paid_for_its_value_and_a_little_for_its_form():
    task = Task(id="", prompt="", answer=10, meta={"numbers": [2, 3, 4]})
    for text, paid in {
        "(2 * 3) + 4": 1.0,
        "4+2*3": 1.0,
        "2*3+4 = 10": 1.0,
        "2*3+4 = 11": 0.0,
        "2 + 3 + 4": 0.1,
        "2 / (3 - 4)": 0.1,
        "2 * 3 + 4 + 0": 0.0,
        "2 * 3": 0.0,
        "2 * 3 + 4 - 4": 0.0,
        "2 ** 3 + 4": 0.0,
        "10": 0.0,
        "23 - 4": 0.0,
        "4 / (2 - 2 * 3)": 0.0,
        "__import__('os')": 0.0,
        "2 3 4": 0.0,
        "(" * 150 + "2*3+4": 0.0,
    }.items():
        assert scored(Reached(), text, task) == paid, text


def test_words_are_sorted_by_letters_and_places_count_half():
    seen = set()
    for task in tasks("SortWords", level=6):
        given = task.prompt.removeprefix("Sort by alphabet: ").split()
        assert task.answer.split() == sorted(given) != given
        seen |= set(given)
    assert seen & set(ACCENTED)
    task = Task(id="", prompt="", answer="a b c d")
    for text, paid in {
        "a b c d": 1.0,
        " a  b\nc d ": 1.0,
        "b a c d": 0.25,
        "d c b a": 0.0,
        "a b c": 0.0,
        "a b c d e": 0.0,
        "a a c d": 0.0,
    }.items():
        assert scored(Sorted(), text, task) == paid, text


def test_letters_are_counted_and_texts_reversed():
    zeros = 0
    for task in tasks("LetterCount", level=3):
        letter, text = re.fullmatch(r'.* letter "(.)" occur in "(.*)"\?', task.prompt).groups()
        assert task.answer == sum(other == letter for other in text)
        zeros += task.answer == 0
    assert 0 < zeros < 150
    for task in tasks("ReverseText", level=2):
        text = task.prompt.removeprefix("Write backwards: ")
        assert "".join(reversed(task.answer)) == text


def test_a_json_object_is_paid_half_and_each_right_key_its_share():
    answer = {"name": "Ada", "count": 3, "active": True, "tags": ["a"]}
    task = Task(id="", prompt="", answer=answer)
    assert scored(Formed(), json.dumps(answer), task).value == 1.0
    assert scored(Formed(), f"```json\n{json.dumps(answer)}\n```", task).value == 1.0
    for key, wrong in (("name", "Eve"), ("count", 3.0), ("active", 1), ("tags", "a")):
        score = scored(Formed(), json.dumps({**answer, key: wrong}), task)
        assert (score.value, score.parts) == (0.875, {"object": 1.0, "keys": 0.75})
    assert scored(Formed(), json.dumps({**answer, "more": 1}), task).value == 0.5 + 0.4
    assert scored(Formed(), "{}", task).value == 0.5
    for text in ("", "[1]", "3", "{'name': 'Ada'}", json.dumps(answer) + " done", "[" * 20_000):
        assert scored(Formed(), text, task).value == 0.0, text
    assert read_object("{" * 30_000) is None
    assert not is_same(True, 1)
    assert is_same([1, ["a"]], [1, ["a"]])


def test_a_mutated_gold_object_loses_exactly_its_share():
    for task in tasks("JSONFormat", 50, level=5):
        for key in task.answer:
            rest = {other: value for other, value in task.answer.items() if other != key}
            assert scored(Formed(), json.dumps(rest), task).value == pytest.approx(0.9)


def test_the_right_option_is_right_and_its_letter_says_nothing():
    counts = np.zeros(4)
    for task in tasks("MultiChoice", 800):
        options, right = task.meta["options"], "ABCD".index(task.answer)
        counts[right] += 1
        question = task.meta["question"]
        if "number" in question:
            values = [int(option) for option in options]
            best = max(values) if "largest" in question else min(values)
        elif "letters" in question:
            values = [len(option) for option in options]
            best = max(values)
        else:
            values = options
            best = sorted(options)[0 if "first" in question else -1]
        assert values[right] == best
        assert values.count(best) == 1
    assert counts.min() > 120


def test_questions_of_a_file_keep_their_id_however_they_are_shuffled(tmp_path):
    rows = [
        {"question": f"q{i}?", "options": ["w", "x", "y"], "answer": answer}
        for i, answer in enumerate(["b", 1, "x", "B"] * 10)
    ]
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = {seed: make("MultiChoice", path=str(path), split="all", seed=seed) for seed in (0, 1)}
    orders = {seed: [env.tasks[i].meta["options"] for i in range(40)] for seed, env in read.items()}
    assert orders[0] != orders[1]
    for env in read.values():
        for i in range(40):
            task = env.tasks[i]
            assert task.meta["options"]["ABC".index(task.answer)] == "x"
    assert [read[0].tasks[i].id for i in range(40)] == [read[1].tasks[i].id for i in range(40)]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"question": "q", "options": "abc", "answer": "a"}, "needs a list of 2 to 8 options"),
        ({"question": "q", "options": ["x", "y"], "answer": "z"}, "no letter of AB"),
        ({"question": "q", "options": ["x", "y"], "answer": 2}, "no letter of AB"),
        ({"question": "q", "options": ["x", "y"]}, "no letter of AB"),
    ],
)
def test_a_question_without_options_or_a_right_one_is_named(row, match, tmp_path):
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(TaskSourceError, match=match) as caught:
        make("MultiChoice", path=str(path), split="all")
    assert "quiz.jsonl" in str(caught.value)


def test_a_summary_beats_the_first_sentences_and_a_copy_is_worth_nothing():
    reference, lead, copy = [], [], []
    for task in tasks("Summarize"):
        text = task.prompt.partition("\n\n")[2]
        reference.append(scored(Facts(), task.solution, task).value)
        lead.append(scored(Facts(), " ".join(text.split()[:LIMIT]), task).value)
        copy.append(scored(Facts(), text, task).value)
        assert scored(Facts(), "", task).value == 0.0
    assert set(reference) == {1.0}
    assert set(copy) == {0.0}
    assert 0 < np.mean(lead) < 0.5
