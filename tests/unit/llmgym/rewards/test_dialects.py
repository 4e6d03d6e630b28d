"""Functions written for other trainers: their dialect, their arguments and their results."""

import asyncio
import threading

import numpy as np
import pytest

from llmgym.errors import RewardError
from llmgym.messages import Completion, Message, Sample, Score, Task
from llmgym.rewards.base import resolve, score_samples
from llmgym.rewards.dialects import understood
from llmgym.rewards.function import from_function
from llmgym.rewards.isolate import Isolated
from tests.unit.llmgym.samples import sample


def chat_sample(response, **columns):
    task = Task(id="c", prompt=(Message("user", "Hi"),), meta=columns)
    return Sample(task=task, messages=(), response=Completion(response), text=response)


def values(fn, samples, **settings):
    return [one.value for one in score_samples(from_function(fn, **settings), samples)]


DIALECTS = {
    "llmgym": [
        lambda response: 0.0,
        lambda prompt, response, completion: 0.0,
        lambda prompt, response, state=None: 0.0,
        lambda **columns: 0.0,
    ],
    "trl": [
        lambda completions: [0.0],
        lambda prompts, completions, solution, **kwargs: [0.0],
        lambda completions, queries, labels: [0.0],
    ],
    "verl": [
        lambda data_source, solution_str, ground_truth, extra_info=None: 0.0,
        lambda solution_str, ground_truth, **kwargs: 0.0,
    ],
    "openrlhf": [
        lambda queries, prompts, labels: [0.0],
        lambda queries, prompts, labels, **kwargs: [0.0],
    ],
    "verifiers": [
        lambda completion: 0.0,
        lambda completion, answer, prompt, state, info, task: 0.0,
        lambda state: 0.0,
        lambda completion, **kwargs: 0.0,
    ],
}


@pytest.mark.parametrize(
    ("dialect", "fn"), [(name, fn) for name, fns in DIALECTS.items() for fn in fns]
)
def test_a_dialect_is_told_by_what_only_it_hands_over(dialect, fn):
    assert understood(fn).dialect == dialect
    assert understood(fn, dialect).reason == "it is set"


def test_an_ambiguous_signature_lists_what_it_could_be_and_the_setting():
    def both(completions, response):
        return [0.0]

    with pytest.raises(RewardError) as failure:
        from_function(both)
    assert "llmgym (it takes response); trl (it takes completions)" in str(failure.value)
    assert "--rewards.0.dialect llmgym" in str(failure.value)
    assert from_function(both, dialect="trl").dialect == "trl"


@pytest.mark.parametrize(
    ("fn", "dialect", "message"),
    [
        (lambda response: 0.0, "trl", "takes no completions"),
        (lambda solution_str, question: 0.0, "verl", "needs question, which the dialect verl"),
        (lambda text, /, response: 0.0, "auto", "must take response"),
        (lambda response: 0.0, "TRL", "one of auto, llmgym, trl"),
    ],
)
def test_a_dialect_that_cannot_call_the_function_is_refused(fn, dialect, message):
    with pytest.raises(RewardError, match=message):
        from_function(fn, dialect=dialect)


def test_a_dialect_without_a_function_is_refused():
    with pytest.raises(RewardError, match="a dialect belongs to a function"):
        resolve({"name": "exact", "dialect": "trl"})


def test_trl_is_called_once_with_lists_of_the_types_of_the_rows():
    calls = []

    def length(prompts, completions, color, **columns):
        calls.append((prompts, completions, color, columns["completion_ids"]))
        return [1.0] * len(completions)

    batch = [sample("ab", color="red"), chat_sample("c", color="blue")]
    values(length, batch)
    prompts = ["What?", [{"role": "user", "content": "Hi"}]]
    completions = ["ab", [{"role": "assistant", "content": "c"}]]
    assert calls == [(prompts, completions, ["red", "blue"], [[], []])]


def test_verl_gets_the_ground_truth_of_its_rows_or_the_answer():
    seen = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.append((data_source, solution_str, ground_truth, extra_info))
        return {"score": 0.5, "acc": True, "pred": "4"}

    row = {
        "data_source": "openai/gsm8k",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 7},
    }
    scores = score_samples(from_function(compute_score), [sample("x", **row), sample("y", "5")])
    assert seen == [("openai/gsm8k", "x", "4", {"index": 7}), ("here", "y", "5", {})]
    assert scores[0] == Score(0.5, {"acc": 1.0})


def test_openrlhf_gets_texts_and_keeps_rewards_apart_from_scores_and_logs():
    seen = []

    def reward_func(queries, prompts, labels):
        seen.append((queries, prompts, labels))
        rewards = np.array([0.25, -1.0])
        return {"rewards": rewards, "scores": rewards > 0, "extra_logs": {"length": [1, 2]}}

    scores = score_samples(from_function(reward_func), [sample("a", label="1"), sample("b", "2")])
    assert seen == [(["What?a", "What?b"], ["What?", "What?"], ["1", "2"])]
    assert scores[0] == Score(0.25, {"scores": 1.0, "length": 1.0})
    assert scores[1] == Score(-1.0, {"scores": 0.0, "length": 2.0})


def test_verifiers_gets_messages_and_a_state():
    seen = {}

    def correct(completion, answer, prompt, state, info, task):
        seen.update(prompt=prompt, info=info, task=task, state=state)
        return completion[-1]["content"] == answer

    assert values(correct, [sample("4", "4", info={"id": 1})]) == [1.0]
    assert seen["prompt"] == [{"role": "user", "content": "What?"}]
    assert seen["info"] == {"id": 1}
    assert seen["state"]["completion"] == [{"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    ("value", "worth"),
    [(True, 1.0), (np.bool_(False), 0.0), (np.float32(0.5), 0.5), (np.array(0.25), 0.25)],
    ids=repr,
)
def test_bools_and_numbers_without_dimensions_are_numbers(value, worth):
    assert values(lambda response: value, [sample("a")]) == [worth]
    assert values(lambda completions: [value], [sample("a")]) == [worth]


def test_none_abstains_and_says_where():
    reward = from_function(lambda completions: [None, 1.0], name="half")
    silent, spoken = score_samples(reward, [sample("a"), sample("b")])
    assert silent.status == "abstain"
    assert "test_dialects.py" in silent.error
    assert "half() returned None, which abstains" in silent.error
    assert spoken == Score(1.0)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda completions: [1.0], r"returned 1 values for 2 samples. The dialect trl calls"),
        (lambda completions: 1.0, r"returned float 1.0 for 2 samples"),
        (lambda completions: {"a": 1.0}, r"returned dict .* for 2 samples"),
        (lambda completions: None, r"returned None for 2 samples"),
        (lambda queries, prompts, labels: {"scores": [1, 2]}, 'a dict with scores, and no "reward'),
        (lambda queries, prompts, labels: {"rewards": [1]}, "returned 1 rewards for 2 samples"),
        (lambda solution_str: {"acc": 1.0}, 'a dict with acc, and no "score", on task t1'),
        (lambda response: {}, "returned {} for the response 'a'.* an empty one is no score"),
        (lambda solution_str: {}, 'a dict with nothing, and no "score"'),
    ],
)
def test_a_result_that_is_no_score_of_its_dialect_is_a_broken_reward(fn, message):
    with pytest.raises(RewardError, match=message):
        values(fn, [sample("a"), sample("b")])


def test_async_functions_run_together_on_a_loop_of_their_own_even_within_a_loop():
    entered = threading.Barrier(4, timeout=30)  # passed only if all four run at once

    async def waits(response):
        await asyncio.get_running_loop().run_in_executor(None, entered.wait)
        if response == "bad":
            raise ValueError("no")
        return len(response)

    async def batch(completions):
        return [len(one) for one in completions]

    async def notebook():
        texts = ["a", "bb", "bad", "dddd"]
        scores = score_samples(from_function(waits), [sample(text) for text in texts])
        return scores, values(batch, [sample("a"), sample("bb")])

    scores, lengths = asyncio.run(notebook())
    assert [score.value for score in scores] == [1.0, 2.0, 0.0, 4.0]
    assert [score.status for score in scores] == ["ok", "ok", "error", "ok"]
    assert scores[2].error.startswith("ValueError: no at ")
    assert lengths == [1.0, 2.0]


FILE = """
import os

def count(completions, **columns):
    return [len(completions)] * len(completions)

def dies(completions, **columns):
    if "die" in completions:
        os._exit(1)
    return [1.0] * len(completions)

async def later(response):
    return {"later": len(response)}
"""


def test_isolated_batches_are_one_call_and_a_crash_costs_its_own_sample(tmp_path):
    file = tmp_path / "batches.py"
    file.write_text(FILE, encoding="utf-8")
    texts = ["a", "die", "c"]
    for name, expected in (("count", [3.0] * 3), ("dies", [1.0, 0.0, 1.0]), ("later", [1, 3, 1])):
        reward = Isolated(f"{file}:{name}", workers=1, timeout=60.0)
        scores = score_samples(reward, [sample(text) for text in texts])
        assert [score.value for score in scores] == expected
        failed = [score.status for score in scores].count("error")
        assert failed == (name == "dies")
        reward.close()
