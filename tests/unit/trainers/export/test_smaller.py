import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.unit.trainers.compress.tiny_models import database_of, model_of, rows_of
from trainers.compress.slicing import slice_model
from trainers.compress.units import uniform_plan
from trainers.errors import CheckpointError
from trainers.export import self_test
from trainers.export.smaller import ExpectedLogits, export_smaller

CARD = {"title": "A smaller model"}


def sliced(kind="llama"):
    database, rows = database_of(kind), rows_of(5, 2)
    plan = uniform_plan(database.variants.geometry, groups=2, channels=24, dropped=[0])
    expected = ExpectedLogits(
        tokens=rows.tokens, mask=rows.mask, logits=database.logits(plan, rows)
    )
    return slice_model(model_of(kind), plan, database.variants.variant), expected


def test_a_sliced_model_loads_in_a_fresh_process_and_computes_the_padded_candidate(tmp_path):
    model, expected = sliced("qwen2")
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "tokenizer.json").write_text("{}")
    size = export_smaller(tmp_path / "small", model, expected, CARD, tokenizer=tmp_path / "dense")
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert names >= {"model.safetensors", "config.json", "README.md", "tokenizer.json"}
    assert size == sum(path.stat().st_size for path in (tmp_path / "small").iterdir())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert loaded.config.num_hidden_layers == 3


def test_a_folder_that_computes_something_else_is_not_kept(tmp_path):
    model, expected = sliced()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1.0
    with pytest.raises(CheckpointError, match=r"its logits are .* from those of the model in mem"):
        export_smaller(tmp_path / "small", model, expected, CARD)
    assert list(tmp_path.iterdir()) == []


def verdict(model, expected, folder):
    """What the self-test says in this process of a model that was saved."""
    model.save_pretrained(folder)
    tensors = {"tokens": expected.tokens, "mask": expected.mask.to(torch.uint8)}
    save_file({**tensors, "logits": expected.logits.contiguous()}, folder / "expected")
    return self_test.fault_of(folder, folder / "expected")


def test_a_row_of_zeros_is_refused(tmp_path):
    model, expected = sliced()
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[3] = 0.0
    assert "gate_proj.weight has 1 rows or columns of zeros" in verdict(model, expected, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_what_is_right_is_accepted(kind, tmp_path):
    assert verdict(*sliced(kind), tmp_path) is None


def test_text_that_depends_on_the_cache_is_refused(tmp_path, monkeypatch):
    model, expected = sliced()
    generate = type(model).generate

    def other(self, tokens, **options):
        ids = generate(self, tokens, **options)
        return ids if options["use_cache"] else ids + 1

    monkeypatch.setattr(type(model), "generate", other)
    assert verdict(model, expected, tmp_path) == "it writes other text with a cache than without"
