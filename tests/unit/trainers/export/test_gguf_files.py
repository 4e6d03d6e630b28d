"""GGUF files that are written: transformers reads the same model, and what is refused."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import llama
from tests.unit.trainers.compress.tiny_models import model_of
from trainers.cli import main as cli
from trainers.errors import CheckpointError, ConfigError
from trainers.export import gguf
from trainers.export.gguf import check_convertible, export_gguf
from trainers.export.gguf_tokenizer import SPLITS, gguf_tokens, pre_tokenizer_name
from trainers.inference.serving import chat_of
from trainers.models.chat import train_tokenizer
from trainers.models.gguf import import_gguf
from trainers.models.loading import load_causal_lm

pytestmark = pytest.mark.gguf
CASES = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
}


def saved(folder, **changes):
    """A chat model of 32 hidden numbers, 4 query heads and 2 of keys."""
    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    model = llama(vocab_size=len(tokenizer) + 3, **changes)
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_file_is_the_model_as_transformers_reads_it(case, kind, tmp_path):
    source = saved(tmp_path / "model", **CASES[case])
    file = tmp_path / "model.gguf"
    made = export_gguf(source, file, chat_of(source), kind=kind)
    assert made.is_loaded
    assert made.bytes == file.stat().st_size
    assert [path.name for path in tmp_path.glob(".*")] == []
    dense, read = load_causal_lm(source).eval(), load_causal_lm(str(file)).eval()
    tokens = torch.arange(30).reshape(2, 15)
    with torch.no_grad():
        apart = (dense(tokens).logits - read(tokens).logits).abs().max()
    scale = 1e-5 if kind == "f32" else 0.1
    assert apart < scale * dense(tokens).logits.abs().max()
    assert (apart == 0) == (made.difference == 0)


def test_tokens_template_and_end_tokens_are_those_of_the_folder(tmp_path):
    source = saved(tmp_path / "model")
    file, tokenizer = tmp_path / "model.gguf", AutoTokenizer.from_pretrained(source)
    export_gguf(source, file, chat_of(source), kind="f32")
    fields = import_gguf().GGUFReader(file).fields
    value = {name: field.contents() for name, field in fields.items() if "tokens" not in name}
    assert value["tokenizer.ggml.pre"] == "smollm"  # GPT-2's, digits alone
    assert value["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert value["tokenizer.chat_template"] == tokenizer.chat_template
    assert not value["tokenizer.ggml.add_bos_token"]
    kinds = value["tokenizer.ggml.token_type"]
    assert len(kinds) == len(tokenizer) + 3
    assert kinds[tokenizer.eos_token_id] == 3
    assert kinds[-3:] == [5, 5, 5]


def test_heads_that_do_not_fill_the_hidden_size_are_written_and_not_loaded(tmp_path):
    source = tmp_path / "model"
    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    size = max(tokenizer.get_vocab().values()) + 1
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    model_of("mistral", vocab_size=size, hidden_size=32, **heads).save_pretrained(source)
    tokenizer.save_pretrained(source)
    made = export_gguf(source, tmp_path / "m.gguf", chat_of(str(source)), kind="f32")
    assert not made.is_loaded
    reader = import_gguf().GGUFReader(tmp_path / "m.gguf")
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert shapes["blk.0.attn_q.weight"] == (32, 24)
    assert reader.fields["llama.attention.key_length"].contents() == 8


def test_biases_are_written_as_their_weights_are(tmp_path):
    source = saved(tmp_path / "model", attention_bias=True, mlp_bias=True)
    model = AutoModelForCausalLM.from_pretrained(source)
    bias = model.model.layers[1].self_attn.q_proj.bias
    torch.nn.init.normal_(bias, std=0.3)
    model.save_pretrained(source)
    made = export_gguf(source, tmp_path / "m.gguf", chat_of(source), kind="q8_0")
    assert not made.is_loaded
    held = {tensor.name: tensor for tensor in import_gguf().GGUFReader(tmp_path / "m.gguf").tensors}
    turned = bias.detach().reshape(4, 2, 4).swapaxes(1, 2).flatten()
    assert torch.equal(torch.tensor(held["blk.1.attn_q.bias"].data), turned)
    assert {"blk.0.ffn_down.bias", "blk.0.attn_output.bias"} <= held.keys()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_families_with_halves_apart(kind, tmp_path):
    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    source = tmp_path / "model"
    flat = {"use_sliding_window": False, "layer_types": None} if kind == "qwen2" else {}
    head = {"head_dim": 128} if kind == "qwen3" else {}
    size = max(tokenizer.get_vocab().values()) + 4  # a tokenizer of Qwen2 adds <|endoftext|>
    sizes = {"hidden_size": 48, "vocab_size": size, **flat, **head}
    model_of(kind, **sizes).save_pretrained(source)
    tokenizer.save_pretrained(source)
    assert export_gguf(source, tmp_path / "m.gguf", chat_of(str(source)), kind="f32").is_loaded


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    source = saved(tmp_path / "model")
    monkeypatch.setattr(gguf, "_interleaved", lambda packed, heads: packed)
    with pytest.raises(CheckpointError, match=r"blk.0.attn_q.weight in .* is not what was to be w"):
        export_gguf(source, tmp_path / "m.gguf", chat_of(source), kind="f32")
    monkeypatch.setattr(gguf, "_check_tensors", lambda file, model: None)
    with pytest.raises(CheckpointError, match="its logits are"):
        export_gguf(source, tmp_path / "m.gguf", chat_of(source), kind="f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "of the family gpt2 is not written as GGUF here"),
        ({"rope_parameters": {"rope_type": "llama3"}}, r"scales its rotary positions \(llama3\)"),
        ({"sliding_window": 4}, "attends to a window of 4 tokens"),
    ],
)
def test_a_model_without_a_form_in_such_files_is_refused(changes, words):
    config = llama().config
    for name, value in changes.items():
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigError, match=words):
        check_convertible(config, "m")


def parts(*described):
    return {"type": "Sequence", "pretokenizers": list(described)}


def test_ways_to_split_text_have_the_names_of_llama_cpp():
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    bare = {**level, "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}
    assert pre_tokenizer_name(level) == "gpt-2"
    assert pre_tokenizer_name(parts(digits, level)) == "smollm"
    for regex, name in SPLITS.items():
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
                 "invert": False}  # fmt: skip
        assert pre_tokenizer_name(parts(split, bare)) == name
        assert pre_tokenizer_name(parts(split, level)) is None
        assert pre_tokenizer_name(parts({**split, "behavior": "Removed"}, bare)) is None
    assert pre_tokenizer_name(parts({**digits, "individual_digits": False}, level)) is None
    assert pre_tokenizer_name({**level, "add_prefix_space": True}) is None
    assert pre_tokenizer_name({"type": "Metaspace"}) is None


def test_another_kind_of_tokenizer_and_too_many_ends_are_refused():
    other = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    other.pre_tokenizer, other.decoder = pre_tokenizers.Whitespace(), decoders.ByteLevel()
    with pytest.raises(ConfigError, match="is not a byte-level BPE"):
        gguf_tokens(PreTrainedTokenizerFast(tokenizer_object=other), size=1, ends=[0], name="m")
    ours = train_tokenizer(["12"], 280)
    with pytest.raises(ConfigError, match="m has 4 end tokens, and a GGUF file names 3"):
        gguf_tokens(ours, size=300, ends=[1, 2, 3, 4], name="m")
    assert gguf_tokens(ours, size=300, ends=[1, 2, 3], name="m").ends == (1, 2, 3)


def test_the_verb_writes_every_format(tmp_path, capsys):
    source = saved(tmp_path / "model")
    file, folder = tmp_path / "m.gguf", tmp_path / "int8"
    assert cli.main(["export", source, "--to", "gguf", "--out", str(file)]) == 0
    assert f"llmgym serve {file} --engine llama-cpp" in capsys.readouterr().out
    assert cli.main(["export", source, "--to", "int8", "--out", str(folder)]) == 0
    assert f"llmgym bench {source} {folder}" in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["quantization_config"]
    for words, message in (
        (["--to", "gguf", "--out", str(tmp_path / "x")], "--to gguf writes a file"),
        (["--to", "int8", "--gguf-type", "f32", "--out", str(tmp_path / "x")], "add --to gguf"),
        (["--out", str(tmp_path / "x.gguf")], "names a GGUF file: add --to gguf"),
        (["--to", "int8", "--out", str(folder)], "exists. Name another"),
    ):
        assert cli.main(["export", source, *words]) == 2
        assert message in capsys.readouterr().err


def test_gguf_of_gguf_and_of_int8_is_refused(tmp_path):
    source = saved(tmp_path / "model")
    file = tmp_path / "m.gguf"
    export_gguf(source, file, chat_of(source), kind="f32")
    with pytest.raises(ConfigError, match="does not hold plain weights"):
        export_gguf(str(file), tmp_path / "again.gguf", chat_of(source))
    AutoModelForCausalLM.from_pretrained(source)
    shutil.rmtree(source)
