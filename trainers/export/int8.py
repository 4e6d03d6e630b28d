"""Writes a model as a folder of int8 weights, and keeps it only if a fresh process computes it.

See `trainers/models/int8.py` for the format and for who reads it. What is not int8 is bfloat16.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast, final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainers.errors import ConfigError
from trainers.export.folders import render_card, replacing
from trainers.export.smaller import TOKENIZER_FILES, ExpectedLogits, check_in_fresh_process
from trainers.models.int8 import (
    HEAD,
    SCALE,
    check_int8,
    is_int8,
    linear_layers,
    quantization_config,
    quantize_model,
    quantize_rows,
)
from trainers.models.loading import load_causal_lm
from trainers.redaction import text_files

SAMPLE_ROWS, SAMPLE_LENGTH = 4, 32
"""Of the random tokens that a written model is tried on."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Export:
    """What was written.

    Attributes:
        bytes: on disk, all files.
        difference: largest difference of a logit to the dense model's on random tokens, as a share
            of the largest logit.
    """

    bytes: int
    difference: float


def sample_tokens(vocab_size: int) -> Tensor:
    """Return random tokens [4, 32], the same every time."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (SAMPLE_ROWS, SAMPLE_LENGTH), generator=rng)


def export_int8(source: str | Path, folder: Path, *, head: bool = True) -> Int8Export:
    """Write the int8 form of a model folder.

    Args:
        source: a plain folder.
        folder: replaced if it exists.
        head: the head computes in int8 too.

    Raises:
        ConfigError: the processor has no kernels, the source is int8 already, does not load or has
            no linear layers.
        CheckpointError: it cannot be written, or a fresh process computes something else.
    """
    check_int8()
    if is_int8(str(source)):
        raise ConfigError(f"{source} holds int8 weights already.")
    model = load_causal_lm(str(source)).eval()
    tokens = sample_tokens(model.config.get_text_config().vocab_size)
    dense = _logits(model, tokens)
    tensors, described = _tensors(model), _described(model, head=head)
    weights = {id(layer.weight) for layer in linear_layers(model).values()}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in weights:
                parameter.copy_(parameter.bfloat16())  # as it is read back
    logits = _logits(quantize_model(model, head=head), tokens)
    difference = float((logits - dense).abs().max() / dense.abs().max())
    with replacing(folder) as aside:
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        text_files.write(aside / "config.json", json.dumps(described, indent=2) + "\n")
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (Path(source) / name).is_file():
                shutil.copy(Path(source) / name, aside / name)
        text_files.write(aside / "README.md", _card(source, difference))
        expected = ExpectedLogits(
            tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool), logits=logits
        )
        check_in_fresh_process(aside, expected, module="trainers.export.loader_test")
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Int8Export(bytes=size, difference=difference)


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits.float()


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return what the file holds."""
    layers = linear_layers(model)
    head = cast(nn.Linear, model.get_output_embeddings())
    tied = head.weight is cast(nn.Embedding, model.get_input_embeddings()).weight
    heads = [name for name in ("lm_head.weight",) if tied]
    tensors = {
        name: value.detach().bfloat16().contiguous()
        for name, value in model.state_dict().items()
        if name not in heads
    }
    for name, layer in layers.items():
        numbers, scale = quantize_rows(layer.weight.detach())
        tensors[f"{name}.weight"] = numbers.contiguous()
        tensors[f"{name}.weight{SCALE}"] = scale[:, None].contiguous()
    return tensors


def _described(model: PreTrainedModel, *, head: bool) -> dict[str, object]:
    described = model.config.to_dict()
    described["architectures"] = [type(model).__name__]
    return {
        **described,
        "dtype": "bfloat16",
        HEAD: head,
        "quantization_config": quantization_config(),
    }


def _card(source: str | Path, difference: float) -> str:
    text = (
        f"int8 weights of {Path(source).name}, a scale per row, in the format compressed-tensors; "
        "activations are quantized per token as they come. On random tokens a logit differs by "
        f"at most {difference:.1%} of the largest. vLLM reads this folder, and llmgym on x86."
    )
    return render_card({"title": "An int8 model", "stage": "int8", "text": text})
