import json
import subprocess
import sys

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from transformers import AutoTokenizer, GenerationConfig

from tests.unit.trainers.models.families import FAMILIES, family_model, ragged_inputs
from trainers.errors import CheckpointError
from trainers.export.folders import (
    export_critic,
    export_mlp,
    export_policy,
    render_card,
    replacing,
)
from trainers.models.chat import ChatFormat, train_tokenizer
from trainers.models.critic import SharedActorCritic, classifier_of
from trainers.models.critic_folders import build_critic
from trainers.models.loading import load_causal_lm
from trainers.models.mlp import build_control, load_mlp

TOKENS = [[5, 9, 11, 3, 60, 7]]
READER = f"""
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification
out = []
for name, kind in json.loads(sys.argv[1]):
    auto = AutoModelForCausalLM if kind == "policy" else AutoModelForTokenClassification
    model = auto.from_pretrained(name, dtype=torch.float32).eval()
    with torch.no_grad():
        out.append(model(input_ids=torch.tensor({TOKENS})).logits.tolist())
print("LOGITS" + json.dumps(out))
"""
CARD = {
    "title": "demo",
    "base_model": "org/base",
    "metrics": {"eval/score": 0.91234},
}


def chat_format():
    tokenizer = train_tokenizer([], 300)
    return ChatFormat(tokenizer, eos_token_ids=[1, 4])


def shaken(module):
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return module


def in_a_fresh_process(folders):
    done = subprocess.run(
        [sys.executable, "-c", READER, json.dumps([[str(f), kind] for f, kind in folders])],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    line = next(one for one in done.stdout.splitlines() if one.startswith("LOGITS"))
    return [torch.tensor(one) for one in json.loads(line.removeprefix("LOGITS"))]


def test_plain_transformers_reads_the_same_logits_from_every_family(tmp_path):
    folders, want = [], []
    for family in FAMILIES:
        model = family_model(family)
        critic = shaken(build_critic(model))
        shared = shaken(SharedActorCritic(model, temperature=1.0, chunk=512))
        export_policy(tmp_path / family / "policy", model, chat_format(), CARD)
        export_critic(tmp_path / family / "critic", critic)
        export_critic(tmp_path / family / "shared", shared)
        for part, kind in (("policy", "policy"), ("critic", "critic"), ("shared", "critic")):
            folders.append((tmp_path / family / part, kind))
        with torch.no_grad():
            for one in (model, *(classifier_of(c.trunk, c.head) for c in (critic, shared))):
                want.append(one(input_ids=torch.tensor(TOKENS)).logits)

    got = in_a_fresh_process(folders)

    for (folder, _), one, other in zip(folders, got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0, msg=str(folder))
        assert one.abs().max() > 0


def test_an_exported_policy_carries_tokenizer_template_and_every_end_token(tmp_path):
    chat, model = chat_format(), family_model("llama")
    model.generation_config.temperature = 0.3
    model.generation_config.do_sample = True
    export_policy(tmp_path / "model", model, chat, CARD)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    messages = [{"role": "user", "content": "1 + 2?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == chat.prompt_ids(messages)
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert generation.eos_token_id == [1, 4]
    assert generation.pad_token_id == chat.pad_token_id
    assert (generation.temperature, generation.top_p, generation.top_k) == (1.0, 1.0, 0)
    assert model.generation_config.temperature == 0.3


def test_an_exported_folder_is_a_model_to_start_from(tmp_path):
    inputs, _ = ragged_inputs()
    for family in ("llama", "gpt2"):
        model = family_model(family)
        critic = shaken(build_critic(model))
        export_policy(tmp_path / family / "model", model, chat_format(), CARD)
        export_critic(tmp_path / family / "critic", critic)
        again = load_causal_lm(str(tmp_path / family / "model"))
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
        values = build_critic(again, str(tmp_path / family / "critic"))(inputs)
        assert torch.equal(values, critic(inputs))


def test_a_critic_that_came_from_a_folder_exports_what_it_says(tmp_path):
    inputs, _ = ragged_inputs()
    first = shaken(build_critic(family_model("gpt2")))
    export_critic(tmp_path / "one", first)
    second = build_critic(family_model("gpt2"), str(tmp_path / "one"))
    export_critic(tmp_path / "two", second)
    third = build_critic(family_model("gpt2"), str(tmp_path / "two"))
    assert torch.equal(third(inputs), first(inputs))


@pytest.mark.parametrize("critic", ["separate", "shared", "none"])
@pytest.mark.parametrize("space", [Discrete(3, start=1), Box(-1, 1, (2,))])
def test_a_control_policy_reads_back_as_it_was(critic, space, tmp_path):
    policy, value = build_control(
        Box(-1, 1, (4,)), space, hidden_sizes=[8, 6], seed=0, critic=critic
    )
    shaken(policy)
    export_mlp(tmp_path / "model", policy, value, CARD)
    again = load_mlp(tmp_path / "model")
    obs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(5, 2, generator=torch.Generator().manual_seed(1))
    uniforms = uniforms[:, : policy.head.num_uniforms]
    assert type(again) is type(policy)
    assert torch.equal(again.acting()(obs, uniforms), policy.acting()(obs, uniforms))
    assert (tmp_path / "model" / "critic.safetensors").exists() is (critic == "separate")


def test_the_card_names_its_base_and_its_figures():
    text = render_card(CARD)
    front, body = text.removeprefix("---\n").split("\n---\n")
    assert front.splitlines() == [
        'library_name: "transformers"',
        'tags: ["llmgym", "ppo"]',
        'base_model: "org/base"',
    ]
    for part in ("# demo", "| `eval/score` | 0.9123 |"):
        assert part in body
    assert "base_model" not in render_card({})


def test_a_folder_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    folder = tmp_path / "model"
    for content in ("one", "two"):
        with replacing(folder) as aside:
            (aside / content).write_text(content)
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_export_leaves_what_was_there(tmp_path):
    folder = tmp_path / "model"
    with replacing(folder) as aside:
        (aside / "one").write_text("one")
    message = r"No space left.*What was there before is whole"
    with pytest.raises(CheckpointError, match=message), replacing(folder) as aside:
        raise OSError(28, "No space left on device", aside)
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_died_between_its_renames_is_put_back(tmp_path):
    folder = tmp_path / "model"
    with replacing(folder) as aside:
        (aside / "one").write_text("one")
    folder.rename(tmp_path / ".model.old")
    with pytest.raises(CheckpointError), replacing(folder):
        raise OSError(28, "No space left on device")
    assert [path.name for path in folder.iterdir()] == ["one"]
