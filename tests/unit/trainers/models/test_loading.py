import json
from email.message import Message
from functools import cache
from urllib.error import HTTPError, URLError

import pytest
import torch
from torch import nn

from tests.unit.trainers.models.families import FAMILIES, family_config, family_model, ragged_inputs
from trainers.config import Config, GenerationConfig, ModelConfig, PPOConfig, TokenizerConfig
from trainers.errors import ConfigError
from trainers.models import hub as files
from trainers.models.causal_lm import CausalPolicy
from trainers.models.chat import train_tokenizer
from trainers.models.critic import SharedActorCritic
from trainers.models.critic_folders import build_critic
from trainers.models.loading import (
    check_context,
    count_parameters,
    load_causal_lm,
    load_chat,
    load_config,
    load_policy,
    load_policy_model,
    load_tokenizer,
)
from trainers.models.presets import fresh_llama, llama_config

ENV = "llmgym/Arithmetic-v0"
TEXTS = ["12 + 34 = 46"]


def saved(folder, family="llama", *, vocab=None, tokenizer=True, **special):
    model = family_model(family, dropout=0.5)
    model.config.eos_token_id = 2
    if vocab:
        model.resize_token_embeddings(vocab)
    model.save_pretrained(folder)
    if tokenizer:
        made = train_tokenizer(TEXTS, 280)
        for name, value in special.items():
            setattr(made, name, value)
        made.save_pretrained(folder)
    return Config(model=ModelConfig(path=str(folder)))


def chat_of(config):
    return load_chat(config, load_tokenizer(config), env=ENV)


@pytest.mark.parametrize(
    ("preset", "vocab_size", "low", "high"),
    [("tiny", 512, 0.8e6, 1.1e6), ("small", 4096, 4.5e6, 5.5e6), ("base", 4096, 15e6, 17e6)],
)
def test_presets_have_the_size_they_promise(preset, vocab_size, low, high):
    with torch.device("meta"):
        config = llama_config(ModelConfig(preset=preset), vocab_size)
        assert low < count_parameters(fresh_llama(config, 0)) < high


def test_a_fresh_model_follows_its_seed_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    config = llama_config(ModelConfig(context=64), 300)
    one, same, other = (fresh_llama(config, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_a_fresh_model_fits_its_tokenizer_and_knows_its_ids():
    config = Config(model=ModelConfig(context=512))
    chat = load_chat(config, load_tokenizer(config, TEXTS), env=ENV)
    policy = load_policy(config, chat)
    assert isinstance(policy, CausalPolicy)
    assert policy.model.config.vocab_size == len(chat.tokenizer)
    assert policy.model.config.eos_token_id == chat.tokenizer.eos_token_id
    assert policy.model.config.pad_token_id == chat.tokenizer.pad_token_id


def test_a_shared_critic_makes_one_model_of_both():
    config = Config(ppo=PPOConfig(critic="shared"))
    chat = load_chat(config, load_tokenizer(config, TEXTS), env=ENV)
    assert isinstance(load_policy(config, chat), SharedActorCritic)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_has_no_dropout_though_it_is_in_train_mode(family, tmp_path):
    model = family_model(family, dropout=0.5)
    model.save_pretrained(tmp_path)
    inputs, mask = ragged_inputs()
    noisy = CausalPolicy(model.train(), temperature=1.0, chunk=512)
    assert not torch.equal(noisy(inputs, mask).logprobs, noisy(inputs, mask).logprobs)

    loaded = load_causal_lm(str(tmp_path))
    policy, critic = CausalPolicy(loaded, temperature=1.0, chunk=512), build_critic(loaded)
    nn.init.ones_(critic.head.weight)

    assert loaded.training
    assert torch.equal(policy(inputs, mask).logprobs, policy(inputs, mask).logprobs)
    assert torch.equal(critic(inputs), critic(inputs))
    noisy.eval()
    torch.testing.assert_close(policy(inputs, mask).logprobs, noisy(inputs, mask).logprobs)


def test_parameters_are_float32_whatever_the_file_holds(tmp_path):
    family_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    critic = build_critic(model, str(tmp_path))
    assert {p.dtype for p in critic.parameters()} == {torch.float32}


def test_the_attention_kernel_is_a_choice(tmp_path):
    family_model("llama").save_pretrained(tmp_path)
    eager = load_causal_lm(str(tmp_path), attention="eager")
    other = load_causal_lm(str(tmp_path), attention="sdpa")
    inputs, mask = ragged_inputs()
    figures = [CausalPolicy(m, temperature=1.0, chunk=9)(inputs, mask) for m in (eager, other)]
    assert eager.config._attn_implementation == "eager"
    torch.testing.assert_close(figures[0].logprobs, figures[1].logprobs, atol=1e-5, rtol=0)


def test_every_end_token_that_is_named_anywhere_counts(tmp_path):
    config = saved(tmp_path, vocab=300)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert set(chat_of(config).eos_token_ids) == {1, 2, 4, 5}
    given = Config(model=config.model, generation=GenerationConfig(eos_token_ids=[7, 1]))
    assert chat_of(given).eos_token_ids == (7, 1)


def test_end_tokens_without_the_one_of_the_template_are_refused(tmp_path):
    config = saved(tmp_path, vocab=300)
    given = Config(model=config.model, generation=GenerationConfig(eos_token_ids=[7]))
    with pytest.raises(ConfigError) as caught:
        chat_of(given)
    assert str(caught.value) == (
        "generation.eos_token_ids [7] leaves out 1, <|end|>, by which the chat template of "
        f"{tmp_path} ends a turn. Add it: --generation.eos-token-ids 7,1"
    )


def test_the_token_by_which_a_template_ends_a_turn_is_an_end_token(tmp_path):
    config = saved(tmp_path, vocab=300, eos_token="<|pad|>")
    for name in ("config.json", "generation_config.json"):
        entries = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(entries | {"eos_token_id": 0}))
    chat = chat_of(config)
    assert chat.eos_token_ids == (0, 1)
    assert chat.response_ids("12")[-1] == chat.end_token_id == 1


def test_a_chat_template_can_come_from_a_file(tmp_path):
    config = saved(tmp_path / "model", vocab=300, chat_template=None)
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    given = Config(model=config.model, tokenizer=TokenizerConfig(chat_template=str(file)))
    ids = chat_of(given).prompt_ids([{"role": "user", "content": "12"}])
    assert load_tokenizer(given).decode(ids) == "12"
    missing = Config(tokenizer=TokenizerConfig(chat_template="no/such.jinja"))
    with pytest.raises(ConfigError, match=r"chat_template no/such\.jinja does not exist"):
        load_tokenizer(missing)


def test_a_model_without_a_chat_template_is_told_what_to_use(tmp_path):
    config = saved(tmp_path, vocab=300, chat_template=None)
    with pytest.raises(ConfigError) as caught:
        chat_of(config)
    assert str(caught.value) == (
        f"{tmp_path} has no chat template, but {ENV} gives messages. Use an instruct model, or "
        "--tokenizer.chat-template FILE. A base model takes --tokenizer.chat-template plain, "
        "which feeds a prompt as it is, or chatml."
    )


def test_a_folder_without_a_tokenizer_is_told_what_is_missing(tmp_path):
    config = saved(tmp_path, tokenizer=False)
    with pytest.raises(ConfigError, match=r"has no tokenizer\. Copy tokenizer\.json"):
        load_tokenizer(config)


def test_a_tokenizer_without_end_and_pad_tokens_is_refused_unless_one_is_given(tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    config = saved(tmp_path, vocab=300, eos_token=None, pad_token=None, chat_template=template)
    for name in ("config.json", "generation_config.json"):
        entries = json.loads((tmp_path / name).read_text())
        entries["eos_token_id"] = None
        (tmp_path / name).write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"names no end token .*--generation\.eos-token-ids"):
        chat_of(config)
    given = Config(model=config.model, generation=GenerationConfig(eos_token_ids=[7]))
    assert chat_of(given).pad_token_id == 7


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path):
    config = saved(tmp_path)
    with pytest.raises(ConfigError, match="the model embeds only 64 tokens"):
        chat_of(config)


def test_an_end_token_that_does_not_exist_is_refused(tmp_path):
    config = saved(tmp_path, vocab=300)
    given = Config(model=config.model, generation=GenerationConfig(eos_token_ids=[300]))
    with pytest.raises(ConfigError, match=r"eos_token_ids \[300\]"):
        chat_of(given)


def test_a_folder_that_does_not_exist_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "gsm8k-sft").mkdir()
    with pytest.raises(ConfigError, match=r"gsm8k-stf does not exist\. Did you mean .*gsm8k-sft\?"):
        load_causal_lm(str(tmp_path / "gsm8k-stf"))


@pytest.mark.parametrize("load", [load_causal_lm, load_config])
def test_a_hub_id_that_is_not_cached_says_why_it_is_not_fetched(load, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="nobody/nothing is neither a folder nor in the local ca"):
        load("nobody/nothing")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is no model folder: it has no config\.json"):
        load_causal_lm(str(tmp_path))


def test_weights_that_could_run_code_are_refused(tmp_path):
    family_config("llama").save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"has no \*\.safetensors"):
        load_causal_lm(str(tmp_path))


@pytest.mark.parametrize("keep", [5, 40, -1])
def test_damaged_weights_are_found_before_they_are_loaded(keep, tmp_path):
    family_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
        load_causal_lm(str(tmp_path))


def test_a_header_that_is_no_json_is_damage(tmp_path):
    family_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8] = 0
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="its header is not JSON"):
        load_causal_lm(str(tmp_path))


def test_prompt_and_response_must_fit_the_context_before_weights_load(tmp_path):
    config = saved(tmp_path, vocab=300)
    check_context(load_config(str(tmp_path)), 60, 4)
    with pytest.raises(ConfigError, match=r"256 .* 64 = 320 exceeds .* context of 64 tokens"):
        load_policy_model(config, chat_of(config))
    assert load_policy_model(config, chat_of(config), needs_room=False) is not None
    fresh = Config(model=ModelConfig(context=100))
    chat = load_chat(fresh, load_tokenizer(fresh, TEXTS), env=ENV)
    with pytest.raises(ConfigError, match="context of 100 tokens"):
        load_policy(fresh, chat)


def test_a_hub_that_does_not_answer_is_asked_once_and_said_at_once(monkeypatch):
    asked = []

    def silent(request, timeout):
        asked.append((request.full_url, timeout))
        raise URLError("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(files, "urlopen", silent)
    monkeypatch.setattr(files, "silence", cache(files.silence.__wrapped__))
    for load in (load_causal_lm, load_config):
        with pytest.raises(ConfigError) as caught:
            load("nobody/nothing")
    said = str(caught.value)
    assert "nobody/nothing is neither a folder nor in the local cache, and https://" in said
    assert "does not answer: Name or service not known" in said
    assert "llmgym doctor" in said
    assert [timeout for _, timeout in asked] == [files.SECONDS]


def test_a_hub_that_refuses_has_answered(monkeypatch):
    def refusing(request, timeout):
        raise HTTPError(request.full_url, 403, "Forbidden", Message(), None)

    monkeypatch.setattr(files, "urlopen", refusing)
    assert files.silence("https://refuses.example") is None
