"""The one reader: text, messages, gold answers and columns, and what it refuses."""

import json
from decimal import Decimal

import numpy as np
import pytest

from llmgym.content import cell_of, content_of, gold_of, has_column, no_column, prompt_of, text_of
from llmgym.errors import TaskSourceError
from llmgym.messages import Message, ToolCall

HALF = "\ud83d"
USER = {"role": "user", "content": "Say 3."}
ANSWER = {"role": "assistant", "content": "3"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def prompt(*messages, last="prefill"):
    return prompt_of(list(messages), "p.jsonl, line 3", last)


def test_text_parts_are_joined_and_read_as_the_same_text():
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "3."}]
    assert content_of({"content": parts}, "m") == "Say 3."
    assert prompt({"role": "user", "content": parts}) == prompt(USER)
    assert text_of(["a", {"text": "b"}], "m") == "ab"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "the content of a message is text, got null"),
        ([], "the content of a message is text, got \\[\\]"),
        (3, "got 3. A number is written as text: in quotes"),
        (True, "got True"),
        ({"text": "a"}, "is text, got {'text': 'a'}"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], 'part 1 is of type "image_url"'),
        (["a", {"type": "image"}], 'part 2 is of type "image", and models here read text alone'),
        ([{"type": "text", "text": None}], "part 1: a part of a content is"),
        ([3], "part 1: a part of a content is"),
        (HALF, "holds half of a character"),
        ([{"type": "text", "text": HALF}], "part 1 holds half of a character"),
        ([ANSWER], "got a list of messages. Write the text of its last message alone"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(content, said):
    with pytest.raises(TaskSourceError, match=f"p.jsonl, line 3, message 2.*{said}"):
        prompt(USER, {"role": "assistant", "content": content}, USER)


def test_null_beside_tool_calls_is_empty_text_and_the_calls_are_kept():
    turns = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    found, _ = prompt(USER, turns, {"role": "tool", "content": "4", "tool_call_id": "c1"}, USER)
    assert found[1] == Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1}, "c1"),))
    assert found[2] == Message("tool", "4", tool_call_id="c1")
    for calls in ([], None):
        with pytest.raises(TaskSourceError, match=r"message 1: the content .* got null"):
            prompt({"role": "assistant", "content": None, "tool_calls": calls}, USER)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "narrator", "content": "a"}, "user, assistant, tool; got 'narrator'."),
        ({"role": ["user"], "content": "a"}, "a role is one of system, developer, user, assistant"),
        ({**USER, "name": 3}, "name: a text is text, got 3"),
        ({**ANSWER, "reasoning_content": "so"}, "has reasoning_content beside its content"),
        ({**ANSWER, "tool_calls": [{"function": {"arguments": {}}}]}, "a tool call is"),
        ({**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "a tool call"),
    ],
)
def test_a_message_that_would_be_read_otherwise_is_refused(message, said):
    with pytest.raises(TaskSourceError, match=f"line 3, message 2.*{said}"):
        prompt(USER, message, USER)


def test_keys_without_a_value_and_those_of_other_programs_change_nothing():
    extra = {**USER, "name": None, "tool_calls": None, "weight": 1, "reasoning_content": ""}
    assert prompt(extra) == prompt(USER)


def test_a_dialogue_that_ends_with_the_assistant_is_refused_unless_it_is_said_what_it_is():
    with pytest.raises(TaskSourceError) as caught:
        prompt(USER, ANSWER, last="raise")
    for word in ("p.jsonl, line 3", "--data.last-assistant", "--envs.0.kwargs.last_assistant",
                 "split", "prefill"):  # fmt: skip
        assert word in str(caught.value)
    assert prompt(USER, ANSWER, last="split") == ((Message("user", "Say 3."),), "3")
    assert prompt(USER, ANSWER, last="prefill") == (
        (Message("user", "Say 3."), Message("assistant", "3")),
        None,
    )
    assert prompt(USER, ANSWER, USER, last="raise")[1] is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Say 3.", "does not end with the assistant"),
        ([USER], "does not end with the assistant"),
        ([ANSWER], "no message before"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "no text in"),
    ],
)
def test_a_row_without_an_answer_to_split_off_is_refused(value, said):
    with pytest.raises(TaskSourceError, match=f"row 1.*{said}"):
        prompt_of(value, "row 1", "split")


ROW = {
    "question": "q",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "a.b": 1,
    "a": {"b": 2, "c": {"d": 3}},
    "answers": {"text": ["x", "y"]},
}


def test_a_dotted_column_reaches_into_mappings_and_lists_and_a_whole_name_comes_first():
    names = ["question", "reward_model.ground_truth", "a.b", "a.c.d", "answers.text.1"]
    assert [cell_of(ROW, name) for name in names] == ["q", "72", 1, 3, "y"]
    assert cell_of({"x.y": {"z": 5}}, "x.y.z") == 5
    for name in ("reward_model.x", "question.x", "answers.text.9", "", "."):
        assert not has_column(ROW, name)
    hint = no_column("f", "ground_truth", ROW)
    assert hint.endswith("answers. Did you mean reward_model.ground_truth?")


def test_a_row_of_very_many_columns_is_named_by_its_first():
    said = no_column("f", "x", {f"c{n}": n for n in range(10**5)})
    assert len(said) < 200
    assert said.endswith("c11, ... (100000 in all).")


@pytest.mark.parametrize("gold", ["", "72", 72, 72.5, 10**400, Decimal("1.5"), np.int64(3)])
def test_a_gold_is_text_or_a_number_as_it_is(gold):
    assert gold_of(gold, "answer", "line 1") == gold


@pytest.mark.parametrize(
    ("gold", "column"),
    [
        (ROW["reward_model"], "reward_model.ground_truth"),
        ({"value": 3, "unit": "cm"}, "reward_model.value"),
        ({"inner": {"answer": "a"}, "id": 3}, "reward_model.inner.answer"),
        (["a", "b"], "reward_model.0"),
        ({"text": ["a"], "start": [3]}, "reward_model.text.0"),
        ({"only": 1.5}, "reward_model.only"),
    ],
)
def test_any_other_gold_is_refused_with_the_column_inside_it(gold, column):
    with pytest.raises(TaskSourceError, match=r"v\.parquet, row 2") as caught:
        gold_of(gold, "reward_model", "v.parquet, row 2")
    assert f"Name the column inside it: {column}\n" in str(caught.value)
    inside = column.removeprefix("reward_model.")
    assert gold_of(cell_of({"g": gold}, f"g.{inside}"), column, "")


@pytest.mark.parametrize("gold", [None, True, np.bool_(0), float("nan"), float("inf"), [], {}, b"7",
                                  object(), HALF, np.float32("nan"), Decimal("NaN")])  # fmt: skip
def test_a_gold_that_is_none_is_refused(gold):
    with pytest.raises(TaskSourceError, match='line 1, column "answer"'):
        gold_of(gold, "answer", "line 1")


def test_an_error_about_a_huge_cell_is_short():
    huge = {"role": "user", "content": {"text": "x" * 10**6}}
    with pytest.raises(TaskSourceError) as caught:
        prompt(huge)
    assert len(str(caught.value)) < 300
    assert json.dumps(str(caught.value))
