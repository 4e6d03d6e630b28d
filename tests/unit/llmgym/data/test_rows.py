"""Rows of other programs: dotted columns, gold answers, half characters, dialogues with answers."""

import json
from importlib import import_module
from pathlib import Path

import gymnasium
import pytest

import llmgym
from llmgym.data.files import read_table
from llmgym.data.rows import Columns, tasks_of
from llmgym.data.survey import MAX_COLUMNS, surveyed
from llmgym.data.tasks import from_file, from_list
from llmgym.errors import RewardError, TaskSourceError
from llmgym.messages import Message
from llmgym.rewards.function import from_function
from llmgym.rewards.rules import Exact


def verl(n):
    """Return a row as verl's Parquet files have it."""
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": f"What is {n} + {n}?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(2 * n)},
        "extra_info": {"index": n, "answer": f"{n}+{n}={2 * n}\n#### {2 * n}", "split": "train"},
    }


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "verl.parquet"
    table = import_module("pyarrow").Table.from_pylist([verl(n) for n in range(30)])
    import_module("pyarrow.parquet").write_table(table, path)
    return str(path)


def earned(env, response, **options):
    env.reset(options=options)
    return env.step(response)[1]


@pytest.mark.parquet
def test_the_right_answer_to_a_row_of_verl_earns_its_reward(parquet):
    for name in ("exact", "numeric"):
        env = gymnasium.make("llmgym/Prompts-v0", path=parquet, split="all", reward=name,
                             answer_column="reward_model.ground_truth")  # fmt: skip
        assert [earned(env, one, index=7) for one in ("14", "15")] == [1.0, 0.0]
        assert env.unwrapped.task.prompt == (Message("user", "What is 7 + 7?"),)
    column = {"name": "exact", "kwargs": {"column": "reward_model.ground_truth"}}
    env = gymnasium.make("llmgym/Prompts-v0", path=parquet, split="all", reward=column)
    assert earned(env, "14", index=7) == 1.0


@pytest.mark.parquet
def test_a_mapping_as_gold_answer_is_an_error_that_names_the_dotted_column(parquet):
    with pytest.raises(TaskSourceError) as caught:
        gymnasium.make("llmgym/Prompts-v0", path=parquet, answer_column="reward_model")
    assert f'{parquet}, row 1, column "reward_model"' in str(caught.value)
    assert "Name the column inside it: reward_model.ground_truth" in str(caught.value)
    reward = {"name": "exact", "kwargs": {"column": "reward_model"}}
    env = gymnasium.make("llmgym/Prompts-v0", path=parquet, reward=reward)
    with pytest.raises(RewardError, match=r"reward_model\.ground_truth"):
        earned(env, "14", index=7)


@pytest.mark.parquet
def test_solutions_and_problems_are_dotted_columns_as_well(parquet):
    env = gymnasium.make("llmgym/GSM8K-v0", path=parquet, split="all", prompt_column="prompt",
                         solution_column="extra_info.answer")  # fmt: skip
    env.reset(options={"index": 4})
    assert env.unwrapped.task.answer == "8"
    (task,) = from_list([{"a": {"q": "x"}, "b": 1}], Columns(prompt="a.q", answer="b")).tasks
    assert (task.prompt, task.answer, task.meta) == ("x", 1, {"a": {"q": "x"}, "b": 1})
    with pytest.raises(TaskSourceError, match=r'no column "ground_truth".*Did you mean reward_m'):
        from_file(parquet, Columns(answer="ground_truth"))


@pytest.mark.parquet
def test_a_file_is_checked_for_the_same(parquet):
    (error,) = surveyed(Path(parquet), answer_column="reward_model").errors
    assert "row 1" in error
    assert "reward_model.ground_truth" in error
    assert "(30 rows like this)" in error
    found = surveyed(Path(parquet), answer_column="reward_model.ground_truth")
    assert (found.errors, found.answers[8], found.is_text) == ((), "14", True)
    assert found.lengths["reward_model.ground_truth"] == (1, 2, 2, 2)


def test_an_answer_column_for_a_function_alone_is_no_error_of_the_file(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{n}", "answer": ["a"]}) for n in range(30)))
    found = surveyed(path)
    assert (found.errors, found.answer_column) == ((), None)
    assert "It is not taken for the answer" in found.warnings[0]


@pytest.mark.parametrize("cell", ['"a\\ud83d"', '["\\uDC00"]', '{"deep": ["x", "\\ud800y"]}'])
def test_half_a_character_anywhere_in_a_row_is_an_error_with_its_line(tmp_path, cell):
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{{"prompt": "b", "note": {cell}}}\n')
    with pytest.raises(TaskSourceError, match=r'p\.jsonl, line 2, column "note" holds half of a'):
        read_table(path)


def test_whole_characters_and_a_spelled_escape_are_no_error(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "\U0001f600 \u2028 \x00 a\r\nb"}, {"prompt": "the text \\ud83d"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [row for _, row in read_table(path)] == rows


DIALOGUE = [{"role": "user", "content": "Say 3."}, {"role": "assistant", "content": "3"}]


def test_the_last_turn_is_the_answer_and_the_solution_where_it_is_split_off(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": DIALOGUE, "n": n}) for n in range(3)))
    for given in ({}, {"answer_column": "n"}):
        env = gymnasium.make("llmgym/Prompts-v0", path=str(path), split="all",
                             last_assistant="split", **given)  # fmt: skip
        seen, _ = env.reset(options={"index": 1})
        assert seen == ({"role": "user", "content": "Say 3."},)
        task = env.unwrapped.task
        assert (task.solution, task.answer) == ("3", (given and 1) or "3")
        assert earned(env, "1" if given else "3", index=1) == 1.0
    env = gymnasium.make("llmgym/Prompts-v0", path=str(path), last_assistant="prefill",
                         answer_column="n", split="all")  # fmt: skip
    assert env.reset(options={"index": 1})[0][-1]["content"] == "3"
    for wrong in ("raise", "splt"):
        with pytest.raises(TaskSourceError, match="last_assistant"):
            gymnasium.make("llmgym/Prompts-v0", path=str(path), answer_column="n",
                           last_assistant=wrong)  # fmt: skip


def test_an_environment_of_ones_own_may_still_begin_the_answer():
    prompt = (Message("user", "a"), Message("assistant", "b"))
    task = llmgym.Task(id="x", prompt=prompt)
    env = llmgym.SingleTurnEnv(llmgym.from_list([task]))
    assert env.reset()[0][-1] == {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("answer_column", [None, "answer", "solution"])
def test_exact_and_a_function_compare_with_the_same_column(answer_column):
    row = {"prompt": "q", "answer": "A", "solution": "S"}
    tasks = from_list([row], Columns(answer=answer_column))
    seen = []

    def score(response, answer):
        seen.append(answer)
        return 1.0

    earned(llmgym.SingleTurnEnv(tasks, from_function(score)), "x", index=0)
    assert seen == ["S" if answer_column == "solution" else "A"]
    assert earned(llmgym.SingleTurnEnv(tasks, Exact()), seen[0], index=0) == 1.0


def test_a_function_gets_the_answer_that_gsm8k_compares_with_and_the_solution_beside_it():
    def score(response, answer, solution):
        return float(answer == "48" and solution.endswith("#### 48"))

    env = gymnasium.make("llmgym/GSM8K-v0", reward=from_function(score))
    assert earned(env, "x", index=2) == 1.0


def test_a_choice_that_is_none_is_refused():
    with pytest.raises(TaskSourceError, match="multi_label is one of first, drop, all; got 'al'"):
        Columns(multi_label="al")


def test_rows_of_very_many_columns_are_looked_at_in_short(tmp_path):
    many = {f"c{n}": n for n in range(3000)}
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({**many, "prompt": f"q{n}", "answer": "a"})
                              for n in range(20)))  # fmt: skip
    found = surveyed(path)
    assert len(found.columns) == 3002
    assert list(found.lengths)[MAX_COLUMNS:] == ["prompt", "answer"]
    (tmp_path / "p.csv").write_text(",".join(many) + "\n" + ",".join(map(str, many)))
    assert len(read_table(tmp_path / "p.csv")[0][1]) == 3000


def test_a_column_may_be_named_twice_by_settings():
    row = (1, {"prompt": "q", "n": 1})
    (task,) = tasks_of([row], Columns(answer="prompt"), "list")
    assert task.answer == "q"
