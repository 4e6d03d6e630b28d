"""`llmgym rewards check`: what it shows of a sound reward, and what it says of a broken one."""

import json

import pytest

from tests.judges import bert
from trainers.cli import main as cli

REWARDS = """
import random
from llmgym import Reward

def score(prompt, response, answer, **columns):
    return {"exact": float(response == answer), "brief": -0.01 * min(10, len(response))}

def raises(response):
    return 1 / len(response)

def keys(response, answer):
    return {}[answer]

def nan(response):
    return float("nan") if not response else 1.0

def none(response):
    return None if len(response) > 100 else 1.0

def silent(response):
    float(response == "")

def dice(response):
    return random.random()

def wants(response, gold):
    return 1.0

def long(response):
    return len(response)

def hangs(response):
    while True:
        pass

def trl(prompts, completions, response=None):
    return [float(len(completion) < 5) for completion in completions]

class Rank(Reward):
    name = "rank"

    def score(self, samples):
        return list(range(len(samples)))
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Type the command beside a file of rewards; give the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "mine.py").write_text(REWARDS, encoding="utf-8")
    rows = [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(30)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def command(*words):
        code = cli.main(["rewards", "check", *words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return command


def test_a_sound_reward_is_shown_by_kind_and_part_with_the_next_command(check):
    code, said = check("mine.py:score", "--data", "my.jsonl", "--n", "3")
    assert code == 0
    assert "mine.py:5)" in said
    assert "rows      3 of my.jsonl" in said
    table = {line.split()[0]: line.split() for line in said.splitlines() if line}
    assert table["solution"][1:5] == ["0.99", "'1'", "exact", "1,"]
    assert "solution      3       0.99       0.99       0.99       0" in said
    assert "spread    -0.1 to 0.99" in said
    assert "ms a call" in said
    assert "the same again, and in a batch: yes" in said
    assert said.endswith(
        "Next      llmgym train prompts --model.path MODEL --envs.0.kwargs.path my.jsonl "
        "--reward mine.py:score\n"
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", ["4 of 20 calls failed, on 4 rows, first on row 1, response empty ''", ":9."]),
        ("nan", ["nan() returned nan, which is not finite; nan() is written at", "mine.py:14."]),
        ("silent", ["it abstains from all 20 responses: mine.py:", "silent() returned None"]),
        ("dice", ["Two calls on row 1, response solution, gave", "draw nothing at random"]),
        ("wants", ["mine.py:26 wants() needs gold", "its columns come from --data FILE"]),
    ],
)
def test_a_broken_reward_is_told_with_row_response_and_line(check, name, says):
    code, said = check(f"mine.py:{name}")
    assert code == 1
    for one in says:
        assert one in said
    assert f"then: llmgym rewards check mine.py:{name}" in said
    assert "Traceback" not in said


def test_what_it_abstains_from_is_a_warning(check):
    code, said = check("mine.py:none")
    assert code == 0
    assert "warning: it abstains from 4 of 20 responses, first from row 1, response long" in said
    assert "mine.py:17 none() returned None" in said


def test_the_dialect_is_shown_with_its_reason_and_can_be_set(check):
    assert "dialect   llmgym: it takes response\n" in check("mine.py:none")[1]
    code, said = check("mine.py:trl", "--dialect", "trl")
    assert code == 0
    assert "dialect   trl: it is set\n" in said
    assert said.endswith("--reward mine.py:trl --rewards.0.dialect trl\n")


def test_a_batch_that_scores_differently_is_told(check):
    code, said = check("mine.py:Rank", "--no-isolated")
    assert code == 1
    assert "error: One call, and a batch of all, on row" in said
    assert "must not depend on the others" in said


def test_a_reward_that_hangs_is_given_up_after_one_call(check):
    code, said = check("mine.py:hangs", "--timeout-seconds", "0.05")
    assert code == 1
    assert "1 of 1 calls failed" in said
    assert "no verdict within 0.05 s; it was killed" in said
    assert "19 of 20 responses were not tried" in said


def test_one_bug_is_told_once_with_its_rows_and_what_was_left_out(check):
    code, said = check("mine.py:keys", "--data", "my.jsonl", "--n", "2")
    assert code == 1
    assert said.count("error: ") == 2
    assert "5 of 5 calls failed, on 1 row, first on row 1" in said
    assert "KeyError: '0' at mine.py:12" in said
    assert "5 of 10 responses were not tried" in said


def test_a_failure_of_a_second_call_is_told_and_no_zero(check, tmp_path):
    (tmp_path / "mine.py").write_text(
        "seen = set()\n\ndef once(response):\n"
        "    if response in seen:\n        raise OSError('down')\n"
        "    seen.add(response)\n    return 1.0\n",
        encoding="utf-8",
    )
    (tmp_path / "one.jsonl").write_text('{"prompt": "Say.", "answer": "A"}\n', encoding="utf-8")
    words = ["--data", "one.jsonl", "--no-isolated"]
    _, said = check("mine.py:once", *words)
    assert "response solution, gave 1 and then OSError: down at mine.py:5. A" in said


def test_what_teaches_nothing_or_the_wrong_thing_is_a_warning(check):
    code, said = check("math.boxed")
    assert code == 0
    assert "warning: every response earns 0, so there is nothing to learn from" in said
    code, said = check("mine.py:long")
    assert code == 0
    assert "earns 36 on row 1, its solution 2: a policy learns what pays most" in said


def test_a_gold_beyond_the_rows_tried_is_refused_with_its_row(check, tmp_path):
    rows = [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(30)]
    rows[25]["answer"] = "twenty-five"
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    code, said = check("numeric", "--data", "my.jsonl", "--n", "3")
    assert code == 1
    assert (
        "error: the answer str 'twenty-five' of the row 'Say 25.' of my.jsonl, line 26 (task "
        in said
    )
    assert "nothing was scored" in said


def test_a_text_beyond_a_reward_models_context_is_a_warning_and_no_failure(check, tmp_path):
    code, said = check(str(bert(tmp_path / "judge")), "--kwargs", "head=logit[good]")
    assert code == 0, said
    assert "warning: response long is more than a text may have: reward_model: prompt and" in said
    assert "--rewards.0.kwargs.head 'logit[good]'\n" in said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reward_model_may_round_otherwise_in_a_batch_in_each_type(check, tmp_path, dtype):
    words = ["--kwargs", "head=logit[good]", "--kwargs", f"dtype={dtype}"]
    code, said = check(str(bert(tmp_path / "judge")), *words)
    assert code == 0, said
    assert "the same again, and in a batch: yes" in said


def test_a_difference_is_shown_in_the_digits_that_differ(check, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from llmgym import Reward\n\nclass Shifts(Reward):\n    name = 'shifts'\n\n"
        "    def score(self, samples):\n"
        "        return [1.2668 + 1e-9 * (len(samples) > 1) for _ in samples]\n",
        encoding="utf-8",
    )
    code, said = check("mine.py:Shifts", "--no-isolated")
    assert code == 1
    assert "gave 1.2668 and 1.266800001. A sample's score" in said


def test_names_columns_and_arguments_reach_the_reward(check, tmp_path):
    (tmp_path / "q.csv").write_text("q,gold\nTwo and two?,4\n", encoding="utf-8")
    words = ["--data", "q.csv", "--prompt-column", "q", "--answer-column", "gold"]
    code, said = check("numeric", "--kwargs", "whole=true", *words)
    assert code == 0
    assert "solution      1          1          1          1" in said
    assert "--envs.0.kwargs.prompt_column q --envs.0.kwargs.answer_column gold" in said
    assert said.endswith("--rewards.0.name numeric --rewards.0.kwargs.whole true\n")


def test_json_holds_every_answer(check):
    code, said = check("numeric", "--json")
    found = json.loads(said)
    assert code == 0
    assert len(found["answers"]) == 20
    assert found["answers"][0]["score"]["value"] == 1.0
    assert found["errors"] == found["warnings"] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mine.py:scor"], "did you mean score?"),
        (["mine.py"], "it has mine.py:score, mine.py:raises"),
        (["nope"], 'no reward is named "nope"'),
        (["numeric", "--data", "no.jsonl"], "no file no.jsonl"),
        (["numeric", "--data", "my.jsonl", "--n", "0"], "--n is 1 or more, got 0."),
        (["numeric", "--data", "my.jsonl", "--prompt-column", "q"], 'has no column "q"'),
    ],
)
def test_what_is_not_there_is_wrong_usage(check, words, says):
    code, said = check(*words)
    assert code == 2
    assert says in said
