"""What counts as a secret, and that none is left, whatever it is written as."""

import html
import json
import re
import shlex
from urllib.parse import quote, quote_plus

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainers.redaction import redact as redaction
from trainers.redaction.redact import (
    HIDDEN,
    hidden,
    is_secret,
    redact,
    redacted,
    remember_secrets,
    without_values,
)

KEY = "sk-live4242abcdEFGH"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize(
    "name",
    ["api_key", "API-Key", "X-Api-Key", "openaiApiKey", "api_keys", "apikey", "token", "hf_token",
     "password", "client_secret", "secret_access_key", "access_key_id", "Authorization",
     "credentials", "db_passwd", "private_key", "bearer"],
)  # fmt: skip
def test_these_names_are_of_secrets(name):
    assert is_secret(name, "x y")


@pytest.mark.parametrize(
    ("name", "value"),
    [("key", "question"), ("answer_key", "solution"), ("tokens", "a b"), ("eos_token", "</s>"),
     ("stop_token", "<|end|>"), ("path", KEY), ("tokenizer", "gpt2"), ("monkey", "x"),
     ("max_tokens", "64"), ("keyword", "x"), ("api_key", ""), ("api_key", HIDDEN)],
)  # fmt: skip
def test_these_are_no_secrets(name, value):
    assert not is_secret(name, value)


@pytest.mark.parametrize("name", ["key", "service_key", "tokens", "auth", "end_token"])
def test_a_name_that_may_be_anything_is_a_secrets_where_its_value_looks_like_a_key(name):
    assert is_secret(name, KEY)


def test_a_tree_is_rid_of_secrets_by_name_at_any_depth():
    tree = {
        "kwargs": {"api_key": "short", "headers": {"Authorization": f"Bearer {KEY}"}, "n": 3},
        "credentials": {"user": "me", "words": ["a", "b"]},
        "url": f"postgres://me:{KEY}@host/db?sslmode=on",
        "query": f"https://host/v1?model=m&api_key={KEY}&n=1",
        "max_tokens": 64,
    }
    assert hidden(tree) == {
        "kwargs": {"api_key": HIDDEN, "headers": {"Authorization": HIDDEN}, "n": 3},
        "credentials": {"user": HIDDEN, "words": [HIDDEN, HIDDEN]},
        "url": f"postgres://me:{HIDDEN}@host/db?sslmode=on",
        "query": f"https://host/v1?model=m&api_key={HIDDEN}&n=1",
        "max_tokens": 64,
    }
    remember_secrets(tree)
    assert without_values(f"401: {KEY}, and Bearer {KEY}") == f"401: {HIDDEN}, and {HIDDEN}"


def test_a_short_secret_is_hidden_as_a_whole_word_and_a_number_by_its_name_alone():
    remember_secrets({"password": ["abc12", "xyz", "123456"]})
    assert without_values("abc12 abc123 xyz 123456") == "(hidden) abc123 xyz 123456"
    assert hidden({"password": "123456"}) == {"password": HIDDEN}


@pytest.mark.parametrize(
    ("name", "value", "is_hidden"),
    [("SERVICE_API_KEY", "v4lue-of-it", True), ("HF_TOKEN", "hf_abcdefghij", True),
     ("DB_PASSWORD", "correcthorsebatterystaple", True),
     ("AWS_SECRET_ACCESS_KEY", "a/B+c=1234", True), ("DB_PASSWORD", "postgres", False),
     ("MY_TOKEN", "12345678", False), ("A_KEY", "short1", False),
     ("GOOGLE_CREDENTIALS", __file__, False), ("KEYBOARD", "v4lue-of-it", False)],
)  # fmt: skip
def test_the_environment_tells_secrets_by_name_unless_they_are_words_numbers_or_files(
    monkeypatch, name, value, is_hidden
):
    monkeypatch.setenv(name, value)
    assert (without_values(f"see {value}.") == f"see {HIDDEN}.") is is_hidden


WRITTEN = {
    "plain": str,
    "JSON": json.dumps,
    "JSON as it is": lambda text: json.dumps(text, ensure_ascii=False),
    "Python": repr,
    "shell": shlex.quote,
    "URL": quote,
    "URL in lower case": lambda text: re.sub("%..", lambda code: code[0].lower(), quote(text)),
    "form": quote_plus,
    "page": html.escape,
    "YAML": lambda text: yaml.safe_dump({"a": text}, default_style="'", width=10**6),
    "Python in ASCII": ascii,
}


@pytest.mark.parametrize("kind", WRITTEN)
@given(secret=st.text("abC1'\"/+&<%\\ =\u00e9", min_size=8, max_size=24))
def test_a_secret_is_found_however_it_is_written(kind, secret):
    redaction._known.clear()
    secret = f"k3y{secret}end"
    remember_secrets({"api_key": secret})
    assert "k3y" not in without_values(WRITTEN[kind](f"got {secret}"))
    assert "k3y" not in without_values(WRITTEN[kind](f"got '{secret}' of \"me\""))


def test_what_is_written_as_json_can_be_read_again():
    remember_secrets({"api_key": KEY})
    row = {"a": f"token={KEY}", f"of {KEY}": 1.5, "list": [KEY, 2]}
    text = json.dumps(row)
    hidden_row = {"a": "token=(hidden)", "of (hidden)": 1.5, "list": [HIDDEN, 2]}
    assert json.loads(without_values(text)) == redacted(row) == hidden_row
    assert json.loads(redact(json.dumps({"a": "token=abc", "b": "--api-key x"})))["b"]
