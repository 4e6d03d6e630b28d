"""An architecture whose rows are not exact is found on a tiny model, before weights load."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from trainers.errors import ConfigError
from trainers.generation import probe, transformers
from trainers.models import causal_lm
from trainers.models.miniature import ATTENTION_WINDOW, MAX_PARAMETERS, miniature, small_config


def probed(family, **changes):
    return probe.keeps_cache(miniature(CONFIG_MAPPING[family](**changes)), family)


def test_plain_hybrid_and_chunked_attention_are_exact_with_a_cache():
    for family in ("mistral", "qwen3_next", "lfm3", "llama4_text"):
        assert probed(family), family


@pytest.mark.parametrize("family", ["openai-gpt", "minimax", "rwkv"])
def test_a_family_without_a_cache_that_rows_can_share_reads_whole_rows(family):
    assert not probed(family)


def test_a_family_whose_rows_depend_on_padding_is_refused_by_name_and_size():
    with pytest.raises(ConfigError, match=r"bert \(BertLMHeadModel\) is not supported: scored in a "
                                          r"padded batch, .* differ by [\d.]+"):  # fmt: skip
        probed("bert")


def test_padding_that_enters_a_state_is_seen(monkeypatch):
    for module in (causal_lm, transformers):
        monkeypatch.setattr(module, "hides_left_padding", lambda model: True)
    with pytest.raises(ConfigError, match=r"rwkv .* scored in a padded batch"):
        probed("rwkv")


def test_a_row_beyond_a_window_is_seen(monkeypatch):
    """Masks that forget the window are right for short rows only."""
    model = miniature(CONFIG_MAPPING["mistral"](sliding_window=4096))
    assert model.config.sliding_window == ATTENTION_WINDOW
    real = type(model).forward

    def forgetful(self, *args, use_cache=True, **given):
        self.config.sliding_window = ATTENTION_WINDOW if not use_cache else 10 * ATTENTION_WINDOW
        return real(self, *args, use_cache=use_cache, **given)

    monkeypatch.setattr(type(model), "forward", forgetful)
    assert not probe.keeps_cache(model, "mistral")


def test_rows_that_leave_the_wrong_cache_are_seen(monkeypatch):
    monkeypatch.setattr(transformers, "keep_rows", lambda cache, rows: None)
    assert not probed("qwen3_5_text")


def test_a_folder_is_tried_by_its_config_alone(tmp_path, monkeypatch):
    miniature(CONFIG_MAPPING["llama"]()).save_pretrained(tmp_path)
    assert probe.check_rows(str(tmp_path)) is True
    assert probe.check_rows(None) is True

    def unbuilt(config):
        raise ConfigError("no")

    monkeypatch.setattr(probe, "miniature", unbuilt)
    assert probe.check_rows(str(tmp_path)) is True, "tried once for each content of config.json"
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    assert probe.check_rows(str(tmp_path)) is None, "nothing is known without a miniature"


def test_a_miniature_has_layers_of_every_type_and_small_sizes():
    jamba = CONFIG_MAPPING["jamba"]()
    bamba = CONFIG_MAPPING["bamba"](attn_layer_indices=[9, 18, 27])
    for config in (jamba, bamba, CONFIG_MAPPING["recurrent_gemma"]()):
        assert set(small_config(config).layer_types) == set(config.layer_types)
    model = miniature(CONFIG_MAPPING["mixtral"]())
    assert sum(one.numel() for one in model.parameters()) < MAX_PARAMETERS / 50
    assert all(not torch.equal(one, one * 0) for one in model.parameters()), "biases are random"


def test_a_miniature_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    miniature(CONFIG_MAPPING["llama"]())
    assert torch.equal(torch.get_rng_state(), before)
