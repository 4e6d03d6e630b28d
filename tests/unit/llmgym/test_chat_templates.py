"""What a template's tokens are, which day it prints, and that it ends; by tokenizers of letters."""

import sys
from datetime import date
from types import SimpleNamespace

import jinja2
import pytest
from tokenizers import AddedToken

from llmgym.chat_templates import EndlessTemplateError, bounded, control_tokens, dated, prints_day

DAY = date(2024, 2, 3)


def tokenizer(template, special=(), added=()):
    held = [AddedToken(one, special=True) for one in special]
    held += [AddedToken(one, special=False) for one in added]
    return SimpleNamespace(
        chat_template=template,
        all_special_tokens=list(special[:1]),
        added_tokens_decoder=dict(enumerate(held)),
    )


def rendered(source, **given):
    return jinja2.Environment(trim_blocks=True).from_string(source).render(**given)


def test_special_tokens_control_whether_they_are_named_or_not():
    found = control_tokens(tokenizer("", special=("<s>", "<|header|>", "<0x0A>")))
    assert found.every == ("<|header|>", "<s>")


@pytest.mark.parametrize(
    ("template", "added", "expected"),
    [
        ("{{ '<|User|>' }}", "<|User|>", True),
        ("<|User|>{{ m.content }}", "<|User|>", True),
        ("{{ '<|' + m.role + '|>' }}", "<|tool|>", True),
        ("<|{{ m.role | title }}|>", "<|User|>", True),
        ("{{ m.role }}: {{ m.content }}", "<|User|>", False),
        ("a\n\nb", "\n\n", False),
    ],
)
def test_an_added_token_controls_where_the_template_uses_it(template, added, expected):
    assert (added in control_tokens(tokenizer(template, added=(added,))).every) == expected


def test_an_assistant_may_write_its_own_pairs_and_nobody_else_may():
    template = "<think></think><|User|><think"
    found = control_tokens(tokenizer(template, added=("<think>", "</think>", "<|User|>", "<think")))
    text = "<think>x</think><|User|>"
    assert found.spelled("user").sub("", text) == "x"
    assert found.spelled("tool").sub("", text) == "x"
    kept = control_tokens(tokenizer(template, added=("<think>", "</think>", "<|User|>")))
    assert kept.spelled("assistant").sub("", text) == "<think>x</think>"


def test_a_special_pair_is_nobodys():
    found = control_tokens(tokenizer("<think></think>", special=("<s>", "<think>", "</think>")))
    assert found.spelled("assistant").sub("", "<think>x</think>") == "x"


def test_every_template_of_several_counts():
    found = control_tokens(tokenizer({"default": "a", "tool": "<|Tool|>"}, added=("<|Tool|>",)))
    assert found.every == ("<|Tool|>",)


@pytest.mark.parametrize(
    "form", ["%d %b %Y", "%B %d, %Y", "%Y-%m-%d", "%A %-d", "%H:%M", "%y%j", "%%"]
)
def test_a_dated_template_prints_its_day_in_any_form(form):
    template = f"\n{{% if strftime_now is defined %}}{{{{ strftime_now('{form}') }}}}{{% endif %}}"
    source = dated(tokenizer(template), DAY)
    now = jinja2.Environment(trim_blocks=True)
    now.globals["strftime_now"] = DAY.strftime
    expected = now.from_string(template).render()
    assert rendered(source) == expected.replace("%", "%%" if form == "%%" else "%")


def test_only_a_template_that_prints_the_day_is_dated():
    assert dated(tokenizer("{{ content }}"), DAY) is None
    assert dated(tokenizer("{{ strftime_now('%d') }}"), None) is None
    assert prints_day(tokenizer({"default": "{{ strftime_now('%d') }}"}))


LONG = "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}"
"""A million rounds: longer than the limit of the test, and finite."""


def test_a_template_that_takes_too_long_is_stopped():
    before = sys.gettrace()
    with pytest.raises(EndlessTemplateError, match=r"took more than 0\.02 seconds"), bounded(0.02):
        rendered(LONG)
    assert sys.gettrace() is before


def test_a_template_in_time_is_as_without_a_limit():
    with bounded():
        assert rendered("{% for a in range(3) %}{{ a }}{% endfor %}") == "012"


def test_the_limit_is_of_templates_alone():
    with bounded(0.0):
        assert sum(range(10)) == 45
