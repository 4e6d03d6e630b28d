"""Demonstrations: from rows, from solutions, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import pytest

import llmgym
from llmgym.errors import TaskSourceError
from trainers.config import Config, DataConfig
from trainers.errors import ConfigError
from trainers.supervised.sft_data import (
    Demonstration,
    demonstrations,
    from_env,
    from_rows,
    tokenize_demonstrations,
)

CHAT = SimpleNamespace(
    prompt_ids=lambda messages: [len(one["content"]) for one in messages],
    response_ids=lambda text, messages: [*map(ord, text), 0],
)


def test_a_text_prompt_becomes_a_users_message():
    found = from_rows({"row 1": {"prompt": "2 + 2", "response": "4"}}, DataConfig())
    assert found == [
        Demonstration(messages=({"role": "user", "content": "2 + 2"},), response="4", place="row 1")
    ]


def test_a_dialogue_stays_as_it_is():
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    found = from_rows({"row 1": {"prompt": said, "response": "yo"}}, DataConfig())
    assert found[0].messages == tuple(said)


def test_rows_without_a_prompt_have_no_messages():
    found = from_rows(
        {"row 1": {"text": "once"}}, DataConfig(prompt_column="", response_column="text")
    )
    assert (found[0].messages, found[0].response) == ((), "once")


def test_columns_without_a_prompt_among_them_are_responses_alone():
    said = {"row 1": {"text": "once", "label": "2"}}
    named = DataConfig(columns=["text", "label"], response_column="text")
    (found,) = from_rows(said, named)
    assert (found.messages, found.response) == ((), "once")
    for wrong in (
        {"columns": None},
        {"prompt_column": "question"},
        {"columns": ["prompt", "text"]},
    ):
        with pytest.raises(TaskSourceError, match=r"no column \"(prompt|question)\".*text, label"):
            from_rows(said, replace(named, **wrong))


def test_a_template_that_says_nothing_before_a_first_response_is_refused():
    rows = from_rows({"row 1": {"text": "a"}}, DataConfig(prompt_column="", response_column="text"))
    with pytest.raises(
        ConfigError, match="row 1 has no prompt, and the chat template puts nothing"
    ):
        tokenize_demonstrations(CHAT, rows, longest=9, too_long="raise")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, r'row 2 has no column "response"; it has prompt.*response-column'),
        ({"response": "a"}, r'row 2 has no column "prompt"'),
        ({"prompt": "a", "response": 4}, 'row 2, column "response": a response is text, got 4'),
        ({"prompt": "a", "response": ""}, 'row 2, column "response": a response is text'),
        ({"prompt": "", "response": "a"}, 'row 2, column "prompt": a prompt is text'),
        ({"prompt": [{"role": "user"}], "response": "a"}, "message 1: the content of a message is"),
        ({"prompt": 3, "response": "a"}, 'row 2, column "prompt": a prompt is text'),
    ],
)
def test_a_bad_row_is_named(row, said):
    with pytest.raises(TaskSourceError, match=f"(?s){said}"):
        from_rows({"row 1": {"prompt": "a", "response": "b"}, "row 2": row}, DataConfig())


def test_num_examples_is_a_limit():
    rows = {f"row {n}": {"prompt": "a", "response": "b"} for n in range(1, 6)}
    assert len(from_rows(rows, DataConfig(num_examples=3))) == 3


def test_an_environments_own_solutions_are_right():
    env = gymnasium.make("llmgym/Arithmetic-v0", digits=1)
    found = from_env(env, range(5))
    for number, one in enumerate(found):
        obs, _ = env.reset(options={"index": number})
        assert obs == one.messages
        assert env.step(one.response)[1] == 1.0


def test_tasks_without_solutions_are_refused():
    env = llmgym.SingleTurnEnv(llmgym.from_list(["a", "b"]))
    with pytest.raises(TaskSourceError, match=r"no solutions.*--data FILE"):
        from_env(env, range(2))


def test_endless_environments_give_1024_and_share_what_was_asked_for():
    env = gymnasium.make("llmgym/Arithmetic-v0")
    assert len(demonstrations(Config(), [env])) == 1024
    asked = Config(data=DataConfig(num_examples=7))
    assert len(demonstrations(asked, [env, env])) == 8


def test_a_file_wins_over_the_environments(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "response": "a"}\n')
    found = demonstrations(Config(data=DataConfig(path=str(file))), [])
    assert [one.response for one in found] == ["a"]


def rows_of(*pairs):
    return from_rows(
        {f"row {n}": {"prompt": p, "response": r} for n, (p, r) in enumerate(pairs, start=1)},
        DataConfig(),
    )


def test_the_end_token_counts_as_part_of_the_response():
    found, dropped = tokenize_demonstrations(
        CHAT, rows_of(("ab", "xyz")), longest=5, too_long="raise"
    )
    assert (found[0].prompt, found[0].response) == ((2,), (120, 121, 122, 0))
    assert dropped == 0


def test_a_row_that_is_too_long_is_named_with_its_lengths():
    rows = rows_of(("a", "b"), ("a", "wxyz"))
    with pytest.raises(ConfigError, match=r"row 2 has 1 prompt and 5 response tokens.*takes 5 in"):
        tokenize_demonstrations(CHAT, rows, longest=5, too_long="raise")


def test_or_it_is_dropped_and_counted():
    rows = rows_of(("a", "b"), ("a", "wxyz"))
    found, dropped = tokenize_demonstrations(CHAT, rows, longest=5, too_long="drop")
    assert (len(found), dropped) == (1, 1)


def test_dropping_all_is_refused():
    with pytest.raises(ConfigError, match="no demonstration fits"):
        tokenize_demonstrations(CHAT, rows_of(("a", "wxyz")), longest=5, too_long="drop")


@pytest.mark.data
def test_the_emotions_are_read_by_their_columns(data_dir):
    data = DataConfig(
        path=str(data_dir / "goemotions" / "train.tsv"),
        columns=["text", "labels", "id"],
        response_column="text",
    )
    found = demonstrations(Config(data=data), [])
    assert len(found) == 43_410
    assert found[0].response == "My favourite food is anything I didn't have to cook myself."
    assert not any(one.messages for one in found)
