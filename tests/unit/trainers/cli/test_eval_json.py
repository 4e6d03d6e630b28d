"""`llmgym eval --json` is JSON whatever was scored."""

import json
import math

from trainers.batch import Evaluation
from trainers.cli.eval import as_json, report


def scored(*rewards):
    rows = tuple({"prompt": "p", "completion": "c", "reward": one} for one in rewards)
    return Evaluation(env="e", mean=0.5, ci_low=0.0, ci_high=1.0, scores=rewards, rows=rows)


def test_a_failed_reward_is_null():
    said = json.loads(as_json([("a", scored(1.0, math.nan))]))

    assert [row["reward"] for row in said[0]["rows"]] == [1.0, None]


def test_a_failed_reward_is_called_so_and_takes_no_place_in_a_comparison():
    assert any("reward failed" in line for line in report([("a", scored(math.nan))], "greedy"))
    pair = [("a", scored(math.nan, 1.0)), ("b", scored(1.0, 0.0))]
    assert not any("failed" in line for line in report(pair, "greedy"))
