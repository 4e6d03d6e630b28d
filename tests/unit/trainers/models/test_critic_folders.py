"""Critics of families with and without a token classifier, as folders."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.unit.trainers.models.families import UNCLASSIFIED, WIDTH, family_model, ragged_inputs
from trainers.errors import CheckpointError, ConfigError
from trainers.export.folders import HOW_TO_READ, export_critic
from trainers.models import critic_folders, saving
from trainers.models.critic import Critic, SharedActorCritic, classifier_of, value_width
from trainers.models.critic_folders import build_critic, check_critic, critic_outline
from trainers.models.saving import check_savable, save_model


def model_of(family):
    if family not in UNCLASSIFIED:
        return family_model(family)
    sizes = {**WIDTH, "attention_dropout": 0.0, **UNCLASSIFIED[family]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).train()


def shaken(critic):
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        critic.head.weight.normal_(generator=rng)
        critic.head.bias.fill_(0.3)
    return critic


def both(family):
    """A separate and a shared critic of a family, their heads away from zero."""
    model = model_of(family)
    return model, {
        "separate": shaken(build_critic(model)),
        "shared": shaken(SharedActorCritic(model, temperature=1.0, chunk=512)),
    }


def values_of(critic, inputs):
    """Values [1, T + 1] of the first row, which has no padding."""
    row = inputs.rows(torch.tensor([0]))
    is_separate = isinstance(critic, Critic)
    with torch.no_grad():
        return critic(row) if is_separate else critic(row, row.attention_mask[:, 5:]).values


def documented(folder, tokens):
    """Values [1, L] by the lines of Python in a critic's README.md."""
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0]
    assert '"critic' in code
    names = {"ids": tokens}
    with torch.no_grad():
        exec(code.replace('"critic', f'"{folder}'), names)
    return names["values"]


@pytest.mark.parametrize("family", [*UNCLASSIFIED, "llama"])
def test_the_lines_of_python_in_a_critics_folder_read_its_values(family, tmp_path):
    inputs, _ = ragged_inputs()
    model, critics = both(family)
    for name, critic in critics.items():
        folder = tmp_path / name
        export_critic(folder, critic)
        values = values_of(critic, inputs)
        read = documented(folder, inputs.tokens[:1])[:, inputs.num_prompt - 1 :]
        torch.testing.assert_close(read, values, atol=1e-5, rtol=0)
        assert values.abs().max() > 0.1
        assert (folder / "value_head.json").exists() == (family in UNCLASSIFIED)

        again = build_critic(model, str(folder))

        assert torch.equal(values_of(again, inputs), values)
        assert again.state_dict().keys() == build_critic(model).state_dict().keys()


def test_the_page_of_ppo_shows_the_same_lines():
    page = (Path(__file__).parents[4] / "docs" / "ppo.md").read_text(encoding="utf-8")
    for text in HOW_TO_READ.values():
        assert f"```python{text.split('```python')[1]}" in page


@pytest.mark.parametrize("family", ["olmo2", "opt", "gemma3_text"])
def test_the_score_of_a_reward_model_is_taken_over_without_a_token_classifier(family, tmp_path):
    model = model_of(family)
    config = model.config
    config.num_labels = 1
    scored = AutoModelForSequenceClassification.from_config(config).eval()
    torch.nn.init.normal_(scored.score.weight)
    scored.save_pretrained(tmp_path)
    inputs, _ = ragged_inputs()
    values = values_of(build_critic(model, str(tmp_path)), inputs)
    score = scored(input_ids=inputs.tokens[:1]).logits[0, 0]
    torch.testing.assert_close(values[0, -1], score, atol=1e-5, rtol=0)
    assert values[0, -1] != 0


def test_a_trunk_without_a_head_file_starts_at_zero(tmp_path):
    model = model_of("opt")
    model.save_pretrained(tmp_path)
    inputs, _ = ragged_inputs()
    critic = build_critic(model, str(tmp_path))
    assert critic.head.weight.shape == (1, 16)
    assert values_of(critic, inputs).eq(0).all()


def cut(folder):
    (folder / "value_head.safetensors").unlink()


def garbled(folder):
    (folder / "value_head.safetensors").write_bytes(b"12345678")


def narrow(folder):
    file = folder / "value_head.safetensors"
    save_file({**load_file(file), "weight": torch.ones(1, 3)}, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"has value_head\.json and no value_head\.safetensors\. Copy the folder again"),
        (garbled, r"value_head\.safetensors is damaged"),
        (narrow, r"weight': \[1, 3\].*its trunk needs.*\[1, 32\].*ppo\.critic_init policy"),
    ],
)
def test_a_damaged_head_file_is_named_before_weights_load(damage, message, tmp_path):
    model, critics = both("olmo2")
    export_critic(tmp_path / "critic", critics["shared"])
    damage(tmp_path / "critic")
    for make in (build_critic, critic_outline):
        with pytest.raises(ConfigError, match=message):
            make(model, str(tmp_path / "critic"))


@pytest.mark.parametrize("change", [{"vocab_size": 50}, {"max_position_embeddings": 8}])
def test_a_critic_that_does_not_take_what_the_policy_writes_is_refused(change, tmp_path):
    model = family_model("llama")
    config = AutoConfig.for_model("llama", **{**WIDTH, **change})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    outline = critic_outline(model, str(tmp_path))
    with pytest.raises(ConfigError, match=r"critic_init .* embeds \d+ tokens and takes \d+ at"):
        check_critic(outline, model, str(tmp_path), 9)
    check_critic(critic_outline(model, "policy"), model, "policy", 64)


def outline(family):
    model = model_of(family).to("meta")
    return model, critic_outline(model, "policy")


@pytest.mark.parametrize("family", ["opt", "llama", "gemma3_text"])
def test_what_can_be_saved_is_tried_without_weights_and_leaves_nothing(family, tmp_path):
    check_savable(*outline(family), tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_share_memory_undeclared_are_refused_before_anything_learns(tmp_path):
    model, critic = outline("llama")
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(ConfigError, match=r"transformers does not save LlamaForCausalLM.*lost"):
        check_savable(model, critic, tmp_path)


def test_a_body_that_no_auto_class_makes_again_is_refused(monkeypatch):
    model = model_of("olmo2").to("meta")
    other = model_of("granite").base_model.to("meta")
    monkeypatch.setattr(critic_folders.AutoModel, "from_config", lambda *_args, **_given: other)
    with pytest.raises(ConfigError, match=r"AutoModel makes GraniteModel .* has Olmo2Model"):
        critic_outline(model, "policy")


def test_a_disk_without_room_for_what_a_run_ends_with_is_refused(tmp_path, monkeypatch):
    model, critic = outline("llama")
    size = 4 * sum(one.numel() for one in (*model.parameters(), *critic.parameters()))
    usage = shutil.disk_usage(tmp_path)
    for free, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr(
            saving.shutil, "disk_usage", lambda _path, free=free: usage._replace(free=free)
        )
        if fits:
            check_savable(model, critic, tmp_path)
            continue
        with pytest.raises(ConfigError, match=r"GiB free, and the folders .* --run\.dir"):
            check_savable(model, critic, tmp_path)


def test_a_folder_that_takes_no_file_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write a model to"):
        check_savable(*outline("llama"), tmp_path / "gone")


def test_what_transformers_cannot_save_in_the_end_is_an_error_that_names_the_way_on(
    tmp_path, monkeypatch
):
    model = family_model("llama")
    monkeypatch.setattr(model, "save_pretrained", lambda _folder: int("x"))
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM: .*go on with --resume"):
        save_model(model, tmp_path)


def test_a_classifier_is_made_only_of_what_it_computes_the_same_from():
    model = family_model("llama")
    critic = build_critic(model)
    assert classifier_of(critic.trunk, critic.head) is not None
    assert classifier_of(critic.trunk, torch.nn.Linear(32, 1, bias=False)) is None
    assert classifier_of(critic.trunk, torch.nn.Linear(16, 1)) is None
    assert classifier_of(model_of("opt").base_model, critic.head) is None
    assert value_width(model_of("opt")) == 16
