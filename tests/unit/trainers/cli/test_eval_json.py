"""What `llmgym eval` says of whatever was scored, in JSON and in lines."""

import json
import math

from trainers.batch import Evaluation
from trainers.cli.eval import as_json, evaluation_lines


def scored(*rewards):
    rows = tuple({"prompt": "p", "completion": "c", "reward": one} for one in rewards)
    return Evaluation(env="e", mean=0.5, ci_low=0.0, ci_high=1.0, scores=rewards, rows=rows)


def test_a_failed_reward_is_null():
    said = json.loads(as_json([("a", scored(1.0, math.nan))]))

    assert [row["reward"] for row in said[0]["rows"]] == [1.0, None]


def test_a_failed_reward_is_called_so_and_takes_no_place_in_a_comparison():
    assert any(
        "reward failed" in line for line in evaluation_lines([("a", scored(math.nan))], "greedy")
    )
    pair = [("a", scored(math.nan, 1.0)), ("b", scored(1.0, 0.0))]
    assert not any("failed" in line for line in evaluation_lines(pair, "greedy"))


def test_an_answer_of_blanks_is_quoted_and_stands_beside_its_reward():
    rows = tuple({"prompt": "p", "completion": one, "reward": 0.0} for one in ("", "  ", "c"))
    blank = Evaluation(env="e", mean=0.0, ci_low=0.0, ci_high=0.0, scores=(0.0,) * 3, rows=rows)
    shown = evaluation_lines([("a", blank)], "greedy")
    assert [line.split(maxsplit=1)[1] for line in shown if "answer" in line] == [
        "''  reward 0", "'  '  reward 0", "c  reward 0",
    ]  # fmt: skip
