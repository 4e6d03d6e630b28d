"""Rows of other libraries: each is told by its columns, and all are read as the same example."""

import json

import pytest

from llmgym.data.convert import WRITERS, converted, write_table
from llmgym.data.files import read_table
from llmgym.data.formats import format_of, formatted
from llmgym.data.rows import Columns
from llmgym.data.survey import surveyed
from llmgym.data.tasks import from_file, from_list
from llmgym.errors import TaskSourceError

ASKED = [{"role": "user", "content": "2+2?"}]
SAID = {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
HH = "\n\nHuman: 2+2?\n\nAssistant: "

ANSWERED = {
    "trl, messages": {"messages": [*ASKED, SAID]},
    "trl, prompt and completion": {"prompt": ASKED, "completion": [SAID]},
    "trl, a completion of several": {
        "prompt": [{"role": "system", "content": "Add."}],
        "completion": [*ASKED, SAID],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    },
    "openrlhf": {"input": ASKED, "output": "4"},
    "openrlhf, context": {"context_messages": [*ASKED, SAID]},
    "hh, prompt": {"prompt": HH + "4"},
}
GRADED = {
    "verl": {
        "data_source": "s",
        "prompt": ASKED,
        "reward_model": {"style": "rule", "ground_truth": "4"},
    },
    "openrlhf": {"input": ASKED, "label": "4"},
    "nemo_gym": {"responses_create_params": {"input": ASKED}, "expected_answer": "4"},
    "nemo_gym, metadata": {
        "responses_create_params": {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "2+2?"}]}]
        },
        "verifier_metadata": {"expected_answer": "4"},
    },
}
PREFERRED = {
    "trl, explicit": {"prompt": ASKED, "chosen": [SAID], "rejected": [WRONG]},
    "trl, implicit": {"chosen": [*ASKED, SAID], "rejected": [*ASKED, WRONG]},
    "trl, both": {"prompt": "2+2?", "chosen": [*ASKED, SAID], "rejected": [*ASKED, WRONG]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "hh": {"chosen": HH + "4", "rejected": HH + "5"},
    "nemo_rl": {
        "context": ASKED,
        "completions": [{"rank": 1, "completion": [WRONG]}, {"rank": 0, "completion": [SAID]}],
    },
    "rewardbench": {"prompt": ASKED, "chosen": "4", "rejected": ["5"], "subset": "math"},
}


def read(row, **settings):
    """The only row that a row becomes, and its format."""
    table = formatted([(1, row)], "f.jsonl", **settings)
    assert len(table.rows) == 1
    return table.rows[0][1], table.format


@pytest.mark.parametrize(("name", "row"), ANSWERED.items(), ids=ANSWERED)
def test_an_answered_prompt_is_read_alike_in_every_format(name, row):
    got, kind = read(row)
    assert kind == name.partition(",")[0]
    assert got["prompt"][-1:] == ASKED
    assert got["response"] == "4"
    task = from_list([row])[0]
    assert (task.prompt[-1].content, task.answer, task.solution) == ("2+2?", "4", "4")


@pytest.mark.parametrize(("name", "row"), GRADED.items(), ids=GRADED)
def test_a_prompt_with_its_gold_answer_is_read_alike_in_every_format(name, row):
    got, kind = read(row)
    assert kind == name.partition(",")[0]
    assert from_list([row])[0].prompt[0].content == "2+2?"
    assert got["answer"] == "4"


@pytest.mark.parametrize(("name", "row"), PREFERRED.items(), ids=PREFERRED)
def test_a_preference_is_read_alike_in_every_format(name, row):
    got, kind = read(row)
    assert kind == name.partition(",")[0]
    assert (got["prompt"], got["chosen"], got["rejected"]) == (ASKED, "4", "5")


@pytest.mark.parquet
@pytest.mark.parametrize("to", WRITERS)
def test_what_is_written_is_read_as_it_was(to, tmp_path):
    sources = {"openrlhf": ANSWERED["openrlhf"] | {"label": "4"}}
    rows = [sources["openrlhf"]] if to not in ("hh",) else [PREFERRED["hh"]]
    rows += [PREFERRED["trl, explicit"]] if to in ("trl", "sharegpt", "nemo_rl") else []
    for number, row in enumerate(rows):
        before = read(row)[0]
        for suffix in ("jsonl", "parquet"):
            file = tmp_path / f"{to}{number}.{suffix}"
            write_table(file, [converted(before, to, "here")])
            after = formatted(read_table(file), str(file)).rows[0][1]
            kept = {"verl": ("prompt", "answer"), "nemo_gym": ("prompt", "answer")}
            for name in kept.get(to, ("prompt", "response", "answer", "chosen", "rejected")):
                assert after.get(name) == before.get(name), (to, name)


def test_plain_columns_are_no_format_and_stay_as_they_are():
    for row in (
        {"prompt": "a", "answer": "b"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"instruction": "a", "input": "b", "output": "c"},
        {"text": "a"},
    ):
        assert format_of(row)[0] == "columns"
        assert read(row)[0] == row


def test_named_columns_and_the_setting_win():
    row = ANSWERED["trl, messages"]
    assert read(row, prompt_column="messages")[1] == "columns"
    assert read(row, setting="columns")[0] == row
    assert read({"prompt": "a", "completion": "b"}, setting="trl")[0]["response"] == "b"
    with pytest.raises(TaskSourceError, match="one of auto, columns, trl"):
        read(row, setting="TRL")
    with pytest.raises(TaskSourceError, match=r"f.jsonl, line 1 is not of the format verl"):
        read(row, setting="verl")


def test_a_row_of_another_format_is_named(tmp_path):
    file = tmp_path / "mixed.jsonl"
    rows = [ANSWERED["trl, messages"], {"prompt": "a"}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for reader in (from_file, surveyed):
        with pytest.raises(TaskSourceError, match=r"mixed.jsonl, line 2 is not of the format trl"):
            reader(file)


def test_roles_and_tool_calls_are_kept():
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}, "id": "c1"}
    turns = [
        {"role": "developer", "content": "Use tools."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        SAID,
    ]
    sharegpt = [
        {"from": "developer", "value": "Use tools."},
        {"from": "human", "value": "2+2?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "4"},
    ]
    items = [
        *turns[:2],
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 2}'},
        {"type": "function_call_output", "call_id": "c1", "output": "4"},
        SAID,
    ]
    for row in (
        {"messages": turns},
        {"conversations": sharegpt},
        {"responses_create_params": {"input": items}},
    ):
        task = from_list([row])[0]
        assert [turn.role for turn in task.prompt] == ["developer", "user", "assistant", "tool"]
        called = task.prompt[2].tool_calls[0]
        assert (called.name, called.arguments) == ("add", {"a": 2})
        assert task.answer == "4"


def test_prefill_leaves_the_last_turn_in_the_prompt():
    task = from_list([ANSWERED["sharegpt"]], Columns(last_assistant="prefill"))[0]
    assert task.prompt[-1].role == "assistant"
    assert task.solution is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [SAID]}, "no message before the assistant's answer"),
        ({"chosen": [*ASKED, SAID, *ASKED, SAID], "rejected": [*ASKED, WRONG]}, "3 and 1 follow"),
        ({"chosen": [SAID], "rejected": [WRONG]}, "has no prompt"),
        (
            {"context": ASKED, "completions": [{"rank": 0, "completion": [SAID]}]},
            "no two completions",
        ),
        ({"prompt": "a", "completion": []}, "an empty completion"),
        ({"prompt": "a", "chosen": [], "rejected": ["b"], "subset": "s"}, "lacks a chosen"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "a role is one of"),
    ],
)
def test_a_row_that_cannot_be_read_is_an_error_with_its_place(row, message):
    with pytest.raises(TaskSourceError, match=rf"row 1.*{message}"):
        from_list([row])


def test_a_row_of_several_pairs_gives_several():
    row = PREFERRED["rewardbench"] | {"rejected": ["5", "6"]}
    rows = formatted([(3, row)], "f.jsonl").rows
    assert [(number, made["rejected"]) for number, made in rows] == [(3, "5"), (3, "6")]


def test_a_file_is_not_written_over_and_what_a_format_lacks_is_an_error(tmp_path):
    file = tmp_path / "a.jsonl"
    write_table(file, [{"prompt": "a"}])
    with pytest.raises(TaskSourceError, match="is there already"):
        write_table(file, [{"prompt": "a"}])
    with pytest.raises(TaskSourceError, match="here has no answer, which verl's"):
        converted({"prompt": "a"}, "verl", "here")
    with pytest.raises(TaskSourceError, match="rewardbench is only read"):
        converted({"prompt": "a"}, "rewardbench", "here")
