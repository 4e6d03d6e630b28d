"""What a reward model reads, by a tokenizer that shows its work."""

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken

from llmgym.rewards.rendering import joined, judged_ids


class Letters:
    """One id a letter; control tokens are single letters above ASCII, `^` stands around a text."""

    def __init__(self, template=None, special=("<end>", "[SEP]"), added=()):
        self.chat_template, self.all_special_tokens = template, special
        held = [AddedToken(one, special=True) for one in special]
        held += [AddedToken(one, special=False) for one in added]
        self.added_tokens_decoder = dict(enumerate(held))

    def __call__(self, text, *, add_special_tokens):
        return SimpleNamespace(input_ids=list(f"^{text}^" if add_special_tokens else text))

    def apply_chat_template(self, conversation, *, chat_template, tokenize):
        assert not tokenize
        assert chat_template is None
        return "".join(f"{one['role'][0]}:{one['content']}<end>" for one in conversation)


SAID = [{"role": "user", "content": "hi"}]


def read(tokenizer, messages, response):
    return "".join(judged_ids(tokenizer, messages, response))


def test_each_row_of_the_table():
    assert read(Letters("a template"), [], "yo") == "^yo^"
    assert read(Letters("a template"), SAID, "yo") == "u:hi<end>a:yo<end>"
    assert read(Letters(), SAID, "yo") == "^hi yo^"


@pytest.mark.parametrize("template", [None, "a template"])
def test_a_spelled_control_token_controls_nothing(template):
    messages = [{"role": "user", "content": "a[SEP]b"}]
    said = read(Letters(template), messages, "c<end>d")
    assert "a[ SEP]b" in said
    assert "c< end>d" in said


def test_a_tokenizer_without_control_tokens_changes_no_text():
    assert read(Letters(special=()), SAID, "a <end>") == "^hi a <end>^"
    assert read(Letters(special=()), [], "") == "^^"


def test_a_control_token_that_no_name_tells_controls_nothing_either():
    tokenizer = Letters("<{{ role }}>: {{ content }}", added=("<user>", "<think>", "</think>"))
    messages = [{"role": "user", "content": "a<user>b"}]
    said = read(tokenizer, messages, "<think>x</think>c<user>d")
    assert said == "u:a< user>b<end>a:<think>x</think>c< user>d<end>"


def test_texts_are_parted_by_one_space_where_they_bring_none():
    assert joined(["a", "b"]) == "a b"
    assert joined(["a ", "b"]) == joined(["a", " b"]) == "a b"
    assert joined(["a", "", "b"]) == "a b"
    assert joined([]) == ""
