"""Folders of int8 weights: what is in them, that they load, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import llama, run_settings, save_model
from tests.unit.trainers.compress.tiny_models import model_of
from trainers.errors import CheckpointError, ConfigError
from trainers.export import int8
from trainers.export.int8 import export_int8
from trainers.models.int8 import is_int8, quantize_model
from trainers.models.loading import load_causal_lm
from trainers.runner.run import run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dense folder and its int8 one, and what was said of that."""
    place = tmp_path_factory.mktemp("int8")
    source = save_model(place / "model")
    return source, place / "model-int8", export_int8(source, place / "model-int8")


def test_it_is_smaller_and_loads_as_the_model_in_memory(folders):
    source, folder, export = folders
    assert export.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert 0 < export.difference < 0.1
    sizes = [(path / "model.safetensors").stat().st_size for path in (source, folder)]
    assert sizes[1] < 0.5 * sizes[0]
    dense = load_causal_lm(str(source))
    for name, parameter in dense.named_parameters():
        if "_proj" not in name:
            parameter.data = parameter.bfloat16().float()
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected = quantize_model(dense)(tokens).logits
        assert torch.equal(load_causal_lm(str(folder))(tokens).logits, expected)


def test_it_is_of_the_format_compressed_tensors(folders):
    _, folder, _ = folders
    assert is_int8(str(folder))
    tensors = load_file(folder / "model.safetensors")
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    scale = tensors["model.layers.0.mlp.up_proj.weight_scale"]
    assert (weight.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert scale.shape == (weight.shape[0], 1)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", ["llama", "llama biased", "qwen3", "mistral"])
def test_families_biases_and_heads_of_their_own(kind, tmp_path):
    model_of(kind).save_pretrained(tmp_path / "model")
    export_int8(tmp_path / "model", tmp_path / "int8")
    loaded = load_causal_lm(str(tmp_path / "int8"))
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_a_folder_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    llama().save_pretrained(tmp_path / "model")

    def wrong(tensors, file, **options):
        tensors["model.layers.0.mlp.up_proj.weight"][0] += 9
        save_file(tensors, file, **options)

    monkeypatch.setattr(int8, "save_file", wrong)
    with pytest.raises(CheckpointError, match="its logits are"):
        export_int8(tmp_path / "model", tmp_path / "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_int8_of_int8_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="holds int8 weights already"):
        export_int8(folders[1], tmp_path / "again")


def test_a_folder_without_a_weight_is_refused(folders, tmp_path):
    tensors = load_file(folders[1] / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders[1] / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"lacks the int8 weight of model.layers.1.mlp.up_proj"):
        load_causal_lm(str(tmp_path))


def test_it_does_not_train(folders, tmp_path):
    with pytest.raises(ConfigError, match="holds int8 weights, which do not learn"):
        run(run_settings(folders[1], tmp_path), reward=lambda response: 1.0, loggers=[])
