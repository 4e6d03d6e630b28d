"""A content is read alike, or refused alike, by every stage, the check of a file and a judge."""

import json
from types import SimpleNamespace

import pytest

from llmgym.data.survey import surveyed
from llmgym.data.tasks import from_file
from llmgym.errors import TaskSourceError
from llmgym.rewards.rendering import judged_ids
from trainers.config import Config, DataConfig
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.supervised.preference_data import labeled_examples, preferences
from trainers.supervised.sft_data import demonstrations

PARTS = [{"type": "text", "text": "Say "}, {"type": "text", "text": "3."}]
IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}
CALLS = [{"function": {"name": "add", "arguments": {}}}]
RM = {"reward_model.num_epochs": 1, "ppo.num_iterations": 0}


def by_tasks(path):
    (task,) = from_file(path).tasks
    return [one.as_dict() for one in task.prompt]


def by_sft(path):
    (one,) = demonstrations(Config(data=DataConfig(path=str(path))), [])
    return list(one.messages)


def by_pairs(path):
    return list(preferences(read([], RM), str(path))[0].messages)


def by_classes(path):
    groups = {"reward_model.label_column": "label", "data.response_column": "response"}
    rows = path.with_name("classes.jsonl")
    rows.write_text(f"{path.read_text()}\n" + json.dumps({**ROW, "label": "b", "prompt": "x"}))
    return list(labeled_examples(read([], {**RM, **groups}), str(rows))[0][0].messages)


def by_check(path):
    found = surveyed(path)
    if found.errors:
        raise TaskSourceError(found.errors[0])
    return [one.as_dict() for one in found.prompts[1]]


ROW = {"response": "3", "chosen": "3", "rejected": "4", "label": "a", "answer": "3"}
READERS = [by_tasks, by_sft, by_pairs, by_classes, by_check]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "Say 3."}, "Say 3."),
        ({"content": PARTS}, "Say 3."),
        ({"content": None, "tool_calls": CALLS}, ""),
        ({"content": None}, None),
        ({"content": 3}, None),
        ({"content": [*PARTS, IMAGE]}, None),
        ({"content": "a\ud83d"}, None),
        ({"content": "a", "role": "developer"}, "a"),
        ({"content": "a", "role": "narrator"}, None),
        ({"content": "a", "reasoning_content": "b"}, None),
    ],
)
def test_every_reader_reads_or_refuses_the_same(tmp_path, reader, message, text):
    path = tmp_path / "rows.jsonl"
    prompt = [{"role": "user", **message}, {"role": "user", "content": "Go."}]
    path.write_text(json.dumps({**ROW, "prompt": prompt}))
    if text is None:
        with pytest.raises(TaskSourceError, match=r"\.jsonl, line 1"):
            reader(path)
    else:
        assert [one["content"] for one in reader(path)] == [text, "Go."]


class Letters:
    """A tokenizer with one id a letter."""

    chat_template, all_special_tokens, added_tokens_decoder = None, (), {}

    def __call__(self, text, *, add_special_tokens):
        return SimpleNamespace(input_ids=list(text))


def test_a_judge_reads_the_same_and_refuses_the_same():
    def read_by_judge(content):
        return "".join(judged_ids(Letters(), [{"role": "user", "content": content}], "3"))

    assert read_by_judge(PARTS) == read_by_judge("Say 3.") == "Say 3. 3"
    for content in (None, 3, [IMAGE], "a\ud83d"):
        with pytest.raises(TaskSourceError, match="message 1"):
            read_by_judge(content)


DIALOGUE = [{"role": "user", "content": "Say 3."}, {"role": "assistant", "content": "3"}]


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_a_prompt_that_holds_its_answer(tmp_path, reader):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROW, "prompt": DIALOGUE}))
    with pytest.raises(TaskSourceError, match=r"(?s)\.jsonl, line 1.*--data.last-assistant split"):
        reader(path)


def test_the_last_turn_is_the_response_where_it_is_split_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": DIALOGUE, "label": "a"}, {"messages": DIALOGUE, "label": "b"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    said = {
        "data.path": str(path),
        "data.prompt_column": "messages",
        "data.last_assistant": "split",
    }
    (one, _) = demonstrations(read([], said), [])
    assert (one.messages, one.response) == (({"role": "user", "content": "Say 3."},), "3")
    found, *_ = labeled_examples(
        read([], {**RM, **said, "reward_model.label_column": "label"}), str(path)
    )
    assert [(one.responses, len(one.messages)) for one in found] == [(("3",), 1)] * 2
    with pytest.raises(ConfigError, match=r"data\.last_assistant split .* a pair"):
        preferences(read([], {**RM, **said}), str(path))
    begun = demonstrations(read([], {**said, "data.last_assistant": "prefill",
                                     "data.response_column": "label"}), [])  # fmt: skip
    assert begun[0].messages[-1] == {"role": "assistant", "content": "3"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a", "rejected": "b"}, "--data.prompt-column '' where rows have no"),
        ({"chosen": DIALOGUE, "rejected": DIALOGUE}, "chosen equals rejected"),
        (
            {"prompt": "a", "chosen": "b", "rejected": DIALOGUE},
            "Write the text of its last message alone, and the messages before it as the prompt",
        ),
    ],
)
def test_preferences_of_another_form_are_refused_with_the_form_that_works(tmp_path, row, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(TaskSourceError, match=f"(?s)line 1.*{said}"):
        preferences(read([], RM), str(path))


def test_whole_texts_are_compared_without_a_prompt(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}))
    (found,) = preferences(read([], {**RM, "data.prompt_column": ""}), str(path))
    assert (found.messages, found.responses[1]) == ((), "c")
