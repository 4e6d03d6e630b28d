"""Whatever is encoded of a dialogue has the ids that the whole rendered dialogue has there."""

import functools

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.unit.trainers.models.grid import BACKENDS, CONTROL, PLAIN_ADDED, TEMPLATES, tokenizer
from trainers.models.chat import ChatFormat
from trainers.models.end_tokens import chat_that_ends

GRID = [(backend, template) for backend in BACKENDS for template in TEMPLATES]
ASKED, ANSWER = "What is 12 + 34?", "The sum is 46."


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@functools.cache
def chat_of(backend, template):
    fast = tokenizer(backend, template)
    return chat_that_ends(fast, named=[fast.eos_token_id], ids=None, name="a model", day=None)


def whole(chat, messages, *, generate=False):
    text = chat.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generate
    )
    return chat.tokenizer(text, add_special_tokens=False).input_ids


def check_begins(chat, ids, expected):
    """What the template puts behind the last end token is no part of a dialogue that goes on."""
    assert ids == expected[: len(ids)]
    assert not chat.tokenizer.decode(expected[len(ids) :]).strip()


@pytest.mark.parametrize(("backend", "template"), GRID)
def test_prompt_and_response_are_the_rendered_dialogue(backend, template):
    chat = chat_of(backend, template)
    said = [user(ASKED)]
    prompt = chat.prompt_ids(said)
    assert prompt == whole(chat, said, generate=True)
    for answer in (ANSWER, "Red.", "\u00e9\U0001f600 x"):
        row = [*prompt, *chat.response_ids(answer, said)]
        check_begins(chat, row, whole(chat, [*said, assistant(answer)]))
        assert row[-1] == chat.end_token_id


@pytest.mark.parametrize(("backend", "template"), GRID)
def test_turns_make_the_rendered_dialogue(backend, template):
    chat = chat_of(backend, template)
    said = [user(ASKED)]
    row = chat.prompt_ids(said)
    for answer, asked in ((ANSWER, "Higher?"), ("Lower.", "Red. Green.")):
        row += chat.response_ids(answer, said)
        said = [*said, assistant(answer)]
        row += chat.suffix_ids(said, [user(asked)])
        said = [*said, user(asked)]
    if template == "qwen3":  # it thinks of nothing in its newest turn, and shows older ones without
        nothing = chat.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        assert [row.count(token) for token in nothing] == [2, 2]
        end = len(chat.suffix_ids(said[:-1], said[-1:]))
        assert row[-end:] == whole(chat, said, generate=True)[-end:]
        return
    assert row == whole(chat, said, generate=True)


@pytest.mark.parametrize(("backend", "template"), GRID)
def test_an_answer_that_has_begun_goes_on_in_the_rendered_dialogue(backend, template):
    chat = chat_of(backend, template)
    said = [user(ASKED), assistant("The sum")]
    row = [*chat.prompt_ids(said), *chat.response_ids(" is 46.", said)]
    check_begins(chat, row, whole(chat, [user(ASKED), assistant(ANSWER)]))


@pytest.mark.parametrize(("backend", "template"), GRID)
def test_no_message_writes_a_control_token_and_none_changes_what_is_around_it(backend, template):
    chat = chat_of(backend, template)
    source = chat.tokenizer.chat_template
    used = [*CONTROL, "<s>", "</s>", *(one for one in PLAIN_ADDED if one in source)]
    known = set(chat.tokenizer.convert_tokens_to_ids(used))
    hostile = f"Red.{'Green.'.join(used)}Red."
    plain, ids = chat.prompt_ids([user("Red.")]), chat.prompt_ids([user(hostile)])

    assert [one for one in ids if one in known] == [one for one in plain if one in known]
    assert ids[0] == plain[0]
    assert ids[-1] == plain[-1]
    answer = chat.response_ids(hostile, [user("Red.")])
    kept = set(chat.tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    assert [one for one in answer if one in known - kept] == [chat.end_token_id]
    if backend == "byte-level":
        assert hostile in chat.tokenizer.decode(ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thought_is_learned_as_written(backend):
    chat = chat_of(backend, "qwen3")
    thought = "<think>\nhm\n</think>\n\nRed."
    row = [*chat.prompt_ids([user(ASKED)]), *chat.response_ids(thought, [user(ASKED)])]
    check_begins(chat, row, whole(chat, [user(ASKED), assistant(thought)]))
    # DeepSeek's template shows no thought at all: nothing of a demonstration is lost for it.
    chat = chat_of(backend, "deepseek")
    ids = chat.response_ids(thought, [user(ASKED)])
    assert chat.tokenizer.convert_tokens_to_ids("<think>") in ids
    assert "Red." in chat.decode(ids)
    assert "hm" in chat.decode(ids)
    assert ids[-1] == chat.end_token_id


def test_a_token_does_not_reach_from_a_prompt_into_an_answer():
    chat = chat_of("byte-level", "{% for m in messages %}{{ m.content }}{% endfor %}")
    prompt, answer = chat.prompt_ids([user("The su")]), chat.response_ids("m is 46.")
    assert chat.tokenizer.decode([*prompt, *answer]) == "The sum is 46.</s>"
    assert prompt == chat.tokenizer("The su").input_ids


def test_a_control_token_that_merges_would_make_is_letters_as_well():
    vocab = {"<s>": 0, "<": 1, "s": 2, ">": 3, "<s": 4, "</s>": 5, "a": 6}
    backend = Tokenizer(models.BPE(vocab, [("<", "s"), ("<s", ">")]))
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    chat = ChatFormat(fast, eos_token_ids=[5])
    assert chat.prompt_ids([user("a<s>a")]) == [6, 4, 3, 6, 5]


def test_private_characters_in_messages_are_text_like_any_other():
    chat = chat_of("byte-level", "chatml")
    odd = "\ue0001\ue001\ue0021.1\ue003\ue004</s>"
    said = [user(odd), assistant(odd), user(odd)]
    row = [*chat.prompt_ids(said[:1]), *chat.response_ids(odd, said[:1])]
    row += chat.suffix_ids(said[:2], said[2:])
    assert row == chat.prompt_ids(said)
    assert chat.tokenizer.decode(row).count(odd) == 3
