"""Which models read packed rows: those that compute the same of them, which is tried."""

import inspect
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainers.batch import TextInputs
from trainers.errors import ConfigError
from trainers.models.causal_lm import (
    PROBE_TOLERANCE,
    body_of,
    hidden_states,
    hides_left_padding,
    packed_states,
)
from trainers.models.lean_layers import has_lean_layers
from trainers.models.packed_rows import KERNEL, LEAN_KERNEL, Layout


def packs(model: PreTrainedModel, packing: Literal["auto", "on", "off"]) -> bool:
    """Let a model read packed rows where `backend.packing` asks for it; tell whether it does.

    Raises:
        ConfigError: it is on, and the model does not compute the same of packed rows.
    """
    if packing == "off" or (packing == "auto" and torch.cuda.is_available()):
        return False
    done = pack_rows(model)
    if packing == "on" and not done:
        raise ConfigError(
            f"{type(model).__name__} with attention {model.config._attn_implementation} does not "
            "compute the same of rows that are put end to end. Set --backend.packing auto, which "
            "leaves such models as they are, or --model.attention sdpa if another was asked for."
        )
    return done


def describe_rows(model: PreTrainedModel) -> str:
    """Return what a run says of how a model that learns reads its rows; empty: as transformers."""
    kernel = body_of(model).config.get_text_config()._attn_implementation
    packed = "packed, no padding is computed"
    return {KERNEL: packed, LEAN_KERNEL: f"{packed}; layers with a written-out gradient"}.get(
        str(kernel), ""
    )


@torch.no_grad()
def pack_rows(model: PreTrainedModel) -> bool:
    """Let a model read packed rows, where it computes the same of them; tell whether it does.

    Each module of attention must have been handed the layout, and the states be those of the rows
    alone. Nothing is changed otherwise.
    """
    body = body_of(model)
    config = body.config.get_text_config()
    if not hides_left_padding(body) or config._attn_implementation != "sdpa":
        return False
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return False
    inputs = _probe_rows(config.vocab_size, model.device)
    expected = hidden_states(body, inputs)
    works = has_lean_layers(body) and _agrees(body, LEAN_KERNEL, inputs, expected)
    if not works:
        works = _agrees(body, KERNEL, inputs, expected)
    if not works:
        config._attn_implementation = "sdpa"
    return works


def _agrees(body: PreTrainedModel, kernel: str, inputs: TextInputs, expected: Tensor) -> bool:
    """Give a body a kernel; tell whether its states of packed rows are the expected ones."""
    config, layout = body.config.get_text_config(), Layout.of(inputs)
    config._attn_implementation = kernel
    try:
        packed = packed_states(body, inputs, layout)
    except TypeError:  # this family does not take what it does not know
        return False
    real = inputs.attention_mask[:, inputs.num_prompt - 1 :]
    difference = float((packed - expected)[real].abs().max() / expected[real].abs().max())
    has_read = kernel == LEAN_KERNEL or len(layout.readers) == config.num_hidden_layers
    return has_read and difference <= PROBE_TOLERANCE


def _probe_rows(vocab_size: int, device: torch.device) -> TextInputs:
    """Return rows of several lengths, two of them with one prompt."""
    tokens = torch.arange(40, device=device).view(4, 10) * 7 % vocab_size
    tokens[1, :5] = tokens[0, :5]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[2, :2] = mask[3, :3] = mask[0, 8:] = mask[3, 9:] = False
    return TextInputs(tokens=tokens, attention_mask=mask, num_prompt=5)
