"""The templates that a base model is given by name, and those that cannot be taken."""

from types import SimpleNamespace

import pytest
from tokenizers import processors

from llmgym import chat_templates
from tests.unit.trainers.models.grid import BACKENDS, tokenizer
from trainers.errors import ConfigError
from trainers.models.end_tokens import chat_that_ends
from trainers.models.templates import NAMED, template_of


def chat_of(fast):
    return chat_that_ends(fast, named=[fast.eos_token_id], ids=None, name="a model", day=None)


def base(setting, backend="byte-level", *, puts_bos=False):
    fast = tokenizer(backend, None)
    if puts_bos:
        ids = [("<s>", fast.bos_token_id)]
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=ids
        )
    fast.chat_template = template_of(fast, setting, "a model")
    return chat_of(fast)


@pytest.mark.parametrize("puts_bos", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_feeds_a_prompt_as_it_is(backend, puts_bos):
    chat = base("plain", backend, puts_bos=puts_bos)
    text = "What is 12 + 34?\nThe sum is"
    ids = chat.prompt_ids([{"role": "user", "content": text}])
    assert ids == chat.tokenizer(text).input_ids
    assert (ids[0] == chat.tokenizer.bos_token_id) == puts_bos
    said = [{"role": "user", "content": text}]
    answered = [*ids, *chat.response_ids(" 46.", said)]
    assert answered == [*chat.tokenizer(f"{text} 46.").input_ids, chat.tokenizer.eos_token_id]


def test_plain_goes_on_after_an_answer():
    chat = base("plain")
    old = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    old = [*old, {"role": "assistant", "content": "a"}]
    new = [{"role": "user", "content": "c"}]
    row = [*chat.prompt_ids(old[:2]), *chat.response_ids("a", old[:2]), *chat.suffix_ids(old, new)]
    assert chat.tokenizer.decode(row) == "s\nqa</s>c"


def test_chatml_ends_a_turn_by_its_own_token():
    chat = base("chatml")
    said = [{"role": "user", "content": "q"}]
    row = [*chat.prompt_ids(said), *chat.response_ids("a", said)]
    assert chat.tokenizer.decode(row) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    )
    assert set(chat.tokenizer.convert_ids_to_tokens(chat.eos_token_ids)) == {"</s>", "<|im_end|>"}


@pytest.mark.parametrize(
    ("template", "end"),
    [
        # Phi-3's also closes a whole dialogue; GLM-4's turn ends where the next one begins.
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}",
            "<|im_end|>",
        ),
        (
            "{% for m in messages %}<|{{ m.role | title }}|>{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|Assistant|>{% endif %}",
            "<|User|>",
        ),
    ],
)
def test_a_turn_ends_where_a_dialogue_goes_on(template, end):
    fast = tokenizer("byte-level", template)
    ends = fast.convert_tokens_to_ids(["</s>", "<|User|>"])
    chat = chat_that_ends(fast, named=ends, ids=None, name="a model", day=None)
    said = [{"role": "user", "content": "q"}]
    answered = [*said, {"role": "assistant", "content": "a"}]
    row = [*chat.prompt_ids(said), *chat.response_ids("a", said)]
    row += chat.suffix_ids(answered, said)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_token_id) == end
    assert row == chat.prompt_ids([*answered, *said])


def test_a_template_that_closes_no_turn_has_no_end_of_its_own():
    fast = tokenizer("byte-level", "{% for m in messages %}<|User|>{{ m.content }}{% endfor %}")
    chat = chat_of(fast)
    assert chat.eos_token_ids == (fast.eos_token_id,)
    assert chat.response_ids("a")[-1] == fast.eos_token_id


def test_chatml_needs_its_tokens():
    lacking = SimpleNamespace(get_vocab=lambda: {"<|im_end|>": 3})
    with pytest.raises(
        ConfigError, match=r"needs the token <\|im_start\|>, .* of a model .* plain"
    ):
        template_of(lacking, "chatml", "a model")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_template_file_that_cannot_be_read_is_named(content, tmp_path):
    file = tmp_path / "t.jinja"
    if content is not None:
        file.write_bytes(content)
    fast = tokenizer("byte-level", None)
    with pytest.raises(ConfigError, match=r"tokenizer\.chat_template .*t\.jinja (does not|cannot)"):
        template_of(fast, str(file), "a model")
    assert set(NAMED) == {"plain", "chatml"}


def test_a_template_that_does_not_end_in_time_is_refused_at_its_first_use(monkeypatch):
    monkeypatch.setattr(chat_templates, "LIMIT_SECONDS", 0.02)
    long = "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}"
    with pytest.raises(
        ConfigError, match=r"0\.02 seconds .*, that of a model\. Give one that ends"
    ):
        chat_of(tokenizer("byte-level", long))


@pytest.mark.parametrize(
    "fault",
    ["{{ 1 // 0 }}", "{{ messages[0].content + 1 }}", "{{ messages[9].role.x }}", "{{ x() }}"],
)
def test_a_template_that_fails_is_an_error_that_names_it(fault):
    fast = tokenizer("byte-level", f"{{% for m in messages %}}{fault}{{% endfor %}}")
    with pytest.raises(ConfigError, match="the chat template refuses the messages"):
        chat_of(fast).prompt_ids([{"role": "user", "content": "a"}])
