"""Model folders that lack something, from what is typed to what is said."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmgym import chat_templates

PLAN = ("plan", "prompts")
ROWS = {
    "--reward": "my_reward.py:good",
    "--envs.0.kwargs.path": "prompts.jsonl",
    "--generation.max-new-tokens": 4,
    "--generation.max-prompt-tokens": 60,
}


@pytest.fixture
def without(place, saved_model, tokenizer):
    """Make a folder `changed`: the model with other special tokens or no tokenizer."""

    def make(**special):
        shutil.copytree(saved_model, "changed")
        for file in Path("changed").glob("tokenizer*"):
            file.unlink()
        Path("changed/chat_template.jinja").unlink(missing_ok=True)
        if special:
            before = {name: getattr(tokenizer, name) for name in special}
            for name, value in special.items():
                setattr(tokenizer, name, value)
            tokenizer.save_pretrained("changed")
            for name, value in before.items():
                setattr(tokenizer, name, value)
        return {"--model.path": "changed"}

    return make


def test_a_folder_that_is_not_there_is_named_with_the_one_that_was_meant(refused):
    said = refused({"--model.path": "./modle"})
    assert "model folder ./modle does not exist. Did you mean model?" in said


def test_a_folder_without_a_tokenizer_is_told_two_ways_on(refused, typed, without):
    said = refused(without())
    assert "changed has no tokenizer. Copy tokenizer.json and tokenizer_config.json" in said
    assert "tokenizer.path" in said
    corrected = {"--model.path": "changed", "--tokenizer.path": "./modl"}
    assert "./modl does not exist. Did you mean model?" in refused(corrected)
    assert typed(corrected | {"--tokenizer.path": "model"}).code == 0


def test_a_tokenizer_without_a_pad_token_is_no_obstacle(typed, without):
    assert typed(without(pad_token=None)).code == 0


def test_a_tokenizer_without_pad_and_end_tokens_is_told_the_setting(refused, typed, without):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    changed = without(pad_token=None, eos_token=None, chat_template=template)
    assert "changed names no end token" in refused(changed)
    assert "Set --generation.eos-token-ids" in refused(changed)
    assert typed(changed | {"--generation.eos-token-ids": 5}).code == 0


def test_a_model_without_a_chat_template_is_told_what_to_give(refused, typed, without):
    changed = without(chat_template=None)
    said = refused(changed)
    assert "changed has no chat template, but llmgym/Prompts-v0 gives messages" in said
    assert "--tokenizer.chat-template FILE" in said
    Path("chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert typed(changed | {"--tokenizer.chat-template": "chat.jinja"}).code == 0


def test_a_base_model_is_fed_a_prompt_as_it_is(refused, typed, without):
    changed = without(chat_template=None)
    assert "--tokenizer.chat-template plain, which feeds a prompt as it is" in refused(changed)
    assert "changed has no chat template" in refused(changed | ROWS, verb=PLAN)
    assert "needs the token <|im_start|>" in refused(
        changed | {"--tokenizer.chat-template": "chatml"}
    )
    plain = changed | {"--tokenizer.chat-template": "plain"}
    assert typed(plain | ROWS, verb=PLAN).code == 0
    assert typed(plain).code == 0
    kept = AutoTokenizer.from_pretrained("runs/a/model")
    said = [{"role": "user", "content": "1 + 1 ="}]
    assert kept.apply_chat_template(said, tokenize=False) == "1 + 1 ="


def test_end_tokens_without_that_of_the_template_are_told_all(refused):
    said = refused({"--generation.eos-token-ids": 5})
    assert "generation.eos_token_ids [5] leaves out 1, <|end|>, by which the chat template" in said
    assert "Add it: --generation.eos-token-ids 5,1" in said


def test_a_template_that_takes_too_long_is_refused_by_all(refused, monkeypatch):
    monkeypatch.setattr(chat_templates, "LIMIT_SECONDS", 0.05)
    rounds = "{% for a in range(2000) %}{% for b in range(2000) %}{% endfor %}{% endfor %}"
    Path("long.jinja").write_text(rounds)
    changed = {"--model.path": "model", "--tokenizer.chat-template": "long.jinja"}
    for given in ({}, {"verb": PLAN}):
        said = refused(changed | ROWS, **given)
        assert "the chat template took more than 0.05 seconds" in said
        assert "that of model. Give one that ends: --tokenizer.chat-template FILE" in said


def test_a_chat_template_that_is_not_there_is_named(refused):
    said = refused({"--tokenizer.chat-template": "chat.jinja"})
    assert "tokenizer.chat_template chat.jinja does not exist" in said


def test_damaged_weights_are_found_before_they_are_loaded(refused, without):
    changed = without(eos_token="<|end|>")
    file = Path("changed/model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    said = refused(changed)
    assert "changed/model.safetensors is damaged" in said
    assert "Copy it again" in said
