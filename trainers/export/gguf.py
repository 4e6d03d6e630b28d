"""Writes a model as a GGUF file for llama.cpp, and keeps it only if a fresh process computes it.

Families whose layers are Llama's: llama, mistral, qwen2, qwen3. Queries and keys of `llama` have
the two numbers of a rotation next to each other in a GGUF file, and half a head apart in
transformers.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainers.errors import CheckpointError, ConfigError
from trainers.export.gguf_tokenizer import GgufTokens, add_tokenizer, gguf_tokens
from trainers.export.int8 import sample_tokens
from trainers.export.smaller import ExpectedLogits, check_in_fresh_process
from trainers.models.chat import ChatFormat
from trainers.models.gguf import import_gguf, is_gguf, read_tokenizer
from trainers.models.int8 import is_int8
from trainers.models.loading import load_causal_lm

GgufType = Literal["f32", "bf16", "f16", "q8_0"]
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Name that a GGUF file has for a family."""
LAYER_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
SAMPLES = ("Hello, world!", "12 + 345 = 357\n\n  ok", "\u00e9t\u00e9 \u4f60\u597d \U0001f600")
"""Texts whose tokens must be the same in the file."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GgufExport:
    """What was written.

    Attributes:
        bytes: of the file.
        difference: largest difference of a logit to the float32 model's on random tokens, as a
            share of the largest logit.
        is_loaded: whether a fresh process loaded it; transformers reads fewer shapes of heads from
            such files than llama.cpp does.
    """

    bytes: int
    difference: float
    is_loaded: bool


def check_convertible(config: Any, name: str) -> str:  # noqa: ANN401 - of any family
    """Return the architecture of a GGUF file for a configuration.

    Raises:
        ConfigError: the family, its positions or its attention have no form in such a file.
    """
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"a model of the family {config.model_type} is not written as GGUF here. These are: "
            f"{', '.join(ARCHITECTURES)}. Serve {name} with --engine vllm, or convert it with "
            "llama.cpp's own converter."
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope != "default":
        raise ConfigError(
            f"{name} scales its rotary positions ({rope}), which is not written as GGUF here. "
            "Serve it with --engine vllm."
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else window is not None
    if slides and (window or 0) < config.max_position_embeddings:
        raise ConfigError(
            f"{name} attends to a window of {window} tokens, which is not written as GGUF here. "
            "Serve it with --engine vllm."
        )
    return ARCHITECTURES[config.model_type]


def _add_shapes(writer: Any, config: Any, name: str) -> None:  # noqa: ANN401
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(size)
    writer.add_vocab_size(config.vocab_size)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows [heads * 2 * half, ...] with the halves of each head row by row."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name that a file has for each weight, and the weight."""
    held = dict(model.named_parameters())
    yield "token_embd.weight", held["model.embed_tokens.weight"]
    yield "output_norm.weight", held["model.norm.weight"]
    head = cast(nn.Linear, model.get_output_embeddings()).weight
    if head is not held["model.embed_tokens.weight"]:
        yield "output.weight", cast(nn.Parameter, head)
    for layer in range(model.config.num_hidden_layers):
        for short, long in LAYER_PARTS.items():
            for leaf in ("weight", "bias"):
                parameter = held.get(f"model.layers.{layer}.{long}.{leaf}")
                if parameter is not None:
                    yield f"blk.{layer}.{short}.{leaf}", parameter


def _type_of(gguf: Any, array: np.ndarray, chosen: GgufType) -> Any:  # noqa: ANN401 - gguf's enum
    """Return the type of a tensor: norms and biases are float32; q8_0 needs rows of 32 n."""
    kinds = gguf.GGMLQuantizationType
    if array.ndim == 1:
        return kinds.F32
    if chosen == "q8_0" and array.shape[1] % 32:
        return kinds.F16
    return kinds[chosen.upper()]


@torch.no_grad()
def _add_weights(writer: Any, model: PreTrainedModel, chosen: GgufType) -> None:  # noqa: ANN401
    """Write the weights, and leave in the model what will be read back."""
    gguf, config = import_gguf(), model.config
    turned = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in _named_tensors(model):
        array = parameter.detach().float().numpy()
        kind = _type_of(gguf, array, chosen)
        packed = gguf.quantize(array, kind)
        read = torch.from_numpy(np.array(gguf.dequantize(packed, kind), dtype=np.float32))
        part = name.split(".")[-2]
        if config.model_type in ("llama", "mistral") and part in turned:
            packed = _interleaved(packed, turned[part])  # quantization is within rows
        writer.add_tensor(name, packed, raw_dtype=kind)
        parameter.copy_(read)


def _write_file(
    file: Path, model: PreTrainedModel, tokens: GgufTokens, chosen: GgufType, name: str
) -> None:
    gguf = import_gguf()
    writer = gguf.GGUFWriter(file, ARCHITECTURES[model.config.model_type])
    _add_shapes(writer, model.config, name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[chosen]])
    add_tokenizer(writer, tokens)
    _add_weights(writer, model, chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
}


def export_gguf(
    source: str | Path, file: Path, chat: ChatFormat, *, kind: GgufType = "q8_0"
) -> GgufExport:
    """Write a plain folder's model as a GGUF file, with its tokenizer, template and end tokens.

    Args:
        source: the folder.
        file: replaced if it exists.
        chat: its tokenizer and end tokens.
        kind: type of the matrices; norms are f32.

    Raises:
        ConfigError: the package gguf is missing, the family or the tokenizer has no form in such a
            file, or the source is not a folder of plain weights.
        CheckpointError: it cannot be written, or what is read back is something else.
    """
    import_gguf()
    if is_gguf(str(source)) or is_int8(str(source)):
        raise ConfigError(
            f"{source} does not hold plain weights. Name the folder that it was made from."
        )
    model = load_causal_lm(str(source)).eval()
    check_convertible(model.config, str(source))
    first = [chat.end_token_id, *chat.eos_token_ids]
    tokens = gguf_tokens(
        chat.tokenizer,
        size=model.config.vocab_size,
        ends=list(dict.fromkeys(first)),
        name=str(source),
    )
    ids = sample_tokens(model.config.vocab_size)
    dense = _logits_of(model, ids)
    draft = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_file(draft, model, tokens, kind, Path(source).name)
        logits = _logits_of(model, ids)
        is_loaded = _check_written(draft, model, logits, chat, SAMPLES)
        draft.replace(file)
    except OSError as error:
        raise CheckpointError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
    difference = float((logits - dense).abs().max() / dense.abs().max())
    return GgufExport(bytes=file.stat().st_size, difference=difference, is_loaded=is_loaded)


@torch.no_grad()
def _logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits.float()


def _check_written(
    file: Path, model: PreTrainedModel, logits: Tensor, chat: ChatFormat, texts: Sequence[str]
) -> bool:
    """Compare a file with the model; return whether transformers loads such shapes.

    Raises:
        CheckpointError: it is not the same.
    """
    _check_tensors(file, model)
    if not is_read_back(model.config):
        return False
    read = read_tokenizer(str(file))
    for text in texts:
        if read(text)["input_ids"] != chat.tokenizer(text)["input_ids"]:
            raise CheckpointError(f"the tokenizer in {file.name} splits {text!r} otherwise.")
    ids = sample_tokens(model.config.vocab_size)
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = ExpectedLogits(tokens=ids, mask=mask, logits=logits)
    check_in_fresh_process(file, expected, module="trainers.export.loader_test")
    return True


def is_read_back(config: Any) -> bool:  # noqa: ANN401 - of any family
    """Tell whether transformers reads a GGUF file of such a configuration as it is.

    It leaves out biases of Llama, and the size of a head: it takes the hidden size by the number of
    heads, or 128 for Qwen3.
    """
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return False
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    return size == 128 if config.model_type == "qwen3" else size * heads == hidden


def _check_tensors(file: Path, model: PreTrainedModel) -> None:
    """Compare every tensor of a file with the model's weights.

    Raises:
        CheckpointError: one is missing or holds something else.
    """
    gguf, config = import_gguf(), model.config
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    turned = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in _named_tensors(model):
        tensor = held.pop(name, None)
        array = None if tensor is None else gguf.dequantize(tensor.data, tensor.tensor_type)
        part = name.split(".")[-2]
        if array is not None and config.model_type in ("llama", "mistral") and part in turned:
            rows = array.reshape(turned[part], -1, 2, *array.shape[1:]).swapaxes(1, 2)
            array = rows.reshape(array.shape)
        if array is None or not np.array_equal(array, parameter.detach().numpy()):
            raise CheckpointError(f"{name} in {file.name} is not what was to be written.")
    if held:
        raise CheckpointError(f"{file.name} holds {', '.join(held)}, which is of no weight.")
