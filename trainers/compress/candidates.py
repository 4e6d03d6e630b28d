"""The logits of a candidate without building it: weights are replaced for the length of one call.

A candidate differs from the dense model in a few layers only, so the states before the first of
them are computed once and kept. B rows, L tokens, D hidden, V vocabulary.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from trainers.compress.token_rows import TokenRows

Overrides = Mapping[int, Mapping[str, Tensor] | None]
"""Layer -> what replaces tensors of it by name, or None where it is left out; others are dense."""


class LayerCall(NamedTuple):
    """What a layer of the dense model was called with."""

    hidden: Tensor
    options: dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class DensePass:
    """One block of rows through the dense model.

    Attributes:
        rows: the rows [B, L].
        calls: of every layer, hidden states [B, L, D].
        final: [B, L, D] after the last layer, before the norm.
    """

    rows: TokenRows
    calls: list[LayerCall]
    final: Tensor


@torch.no_grad()
def dense_pass(model: PreTrainedModel, rows: TokenRows) -> DensePass:
    """Run the dense model on rows [B, L] and keep what every layer was called with."""
    calls: list[LayerCall] = []
    last: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else options["hidden_states"]
        kept = {name: value for name, value in options.items() if name != "hidden_states"}
        calls.append(LayerCall(hidden, kept))

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        last.append(output)

    layers = model.model.layers
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        stack.callback(layers[-1].register_forward_hook(after).remove)
        model.model(input_ids=rows.tokens, use_cache=False)
    return DensePass(rows, calls, last[0])


@torch.no_grad()
def candidate_hidden(model: PreTrainedModel, dense: DensePass, overrides: Overrides) -> Tensor:
    """Return the states [B, L, D] of a candidate before the last norm.

    Args:
        model: the dense one; nothing of it is changed.
        dense: its own pass over the rows [B, L].
        overrides: what the candidate replaces.
    """
    if not overrides:
        return dense.final
    first = min(overrides)
    hidden = dense.calls[first].hidden
    for number in range(first, len(dense.calls)):
        replaced = overrides.get(number, {})
        if replaced is None:
            continue
        layer, options = model.model.layers[number], dense.calls[number].options
        hidden = functional_call(layer, dict(replaced), (hidden,), options)
    return hidden


@torch.no_grad()
def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits [N, V] float32 of states [N, D] before the last norm."""
    return model.lm_head(model.model.norm(hidden)).float()


@torch.no_grad()
def summed_kl(
    model: PreTrainedModel, dense: DensePass, hidden: Tensor, *, chunk: int = 1024
) -> tuple[float, int]:
    """Return the sum over counted tokens of KL(dense || candidate) in nats, and their number.

    Args:
        model: whose norm and head both have.
        dense: the dense pass.
        hidden: [B, L, D] of the candidate.
        chunk: tokens whose logits are held at once.
    """
    counted = dense.rows.counted
    ours, theirs = hidden[counted], dense.final[counted]
    total = 0.0
    for start in range(0, len(ours), chunk):
        part = slice(start, start + chunk)
        p = head_logits(model, theirs[part]).log_softmax(-1)
        q = head_logits(model, ours[part]).log_softmax(-1)
        total += float((p.exp() * (p - q)).sum(-1).double().sum())
    return total, len(ours)
