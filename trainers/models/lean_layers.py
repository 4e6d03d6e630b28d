"""The layers of Llama's layout on packed rows, in few operations, on the model's own weights.

Not a model: `functional/decoder.py` computes the halves of a layer, `packed_rows.py` its attention.
The last layer is computed only for the tokens whose state is read: of a prompt, the last one.

N packed tokens, R tokens whose state is read, B rows, T response tokens, D hidden.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel, MistralModel, PreTrainedModel, Qwen2Model
from transformers.activations import SiLUActivation

from trainers.functional.decoder import gated, normed, projected
from trainers.models.packed_rows import LEAN_KERNEL, Layout

LEAN_FAMILIES = (LlamaModel, MistralModel, Qwen2Model)
FIXED_ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not depend on the length of a row."""
KNOWN = (nn.Linear, nn.ModuleList, nn.SiLU, SiLUActivation)
"""Kinds of modules besides those of the families themselves."""
BIASED = ("q_proj", "k_proj", "v_proj")
"""Linear layers that may have a bias."""


def has_lean_layers(body: PreTrainedModel) -> bool:
    """Tell whether a body is of Llama's layout, float32 on a CPU, and nothing must run inside.

    Adapters, the gathering of weights that are sharded, and activations that are made again belong
    to modules that are bypassed here: with them the body's own forward reads the rows.
    """
    return (
        type(body) in LEAN_FAMILIES
        and body.config.rope_parameters.get("rope_type", "default") in FIXED_ROPES
        and body.device.type == "cpu"
        and all(_is_plain(name, part) for name, part in body.named_modules() if part is not body)
    )


def _is_plain(name: str, part: nn.Module) -> bool:
    kind, state = type(part), vars(part)
    if kind is nn.Embedding:  # it is called, and its hooks with it
        return True
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or state["_backward_hooks"]:
        return False
    if state.get("gradient_checkpointing") and part.training:
        return False
    if kind is nn.Linear and part.bias is not None and not name.endswith(BIASED):
        return False
    is_known = kind in KNOWN or kind.__module__.startswith("transformers.models.")
    return is_known and all(weight.dtype == torch.float32 for weight in part.parameters(False))


def reads_lean(body: PreTrainedModel) -> bool:
    """Tell whether these layers read a body's packed rows: tried before, and possible now."""
    lean = body.config.get_text_config()._attn_implementation == LEAN_KERNEL
    return lean and has_lean_layers(body)


def lean_states(body: PreTrainedModel, tokens: Tensor, layout: Layout) -> Tensor:
    """Return the last hidden states of packed tokens [N], where they are read: [B, T + 1, D]."""
    parts = cast(Any, body)
    states = parts.embed_tokens(tokens[None])[0]
    cos, sin = parts.rotary_emb(states[None], layout.positions[None])
    read, places = layout.places.unique(return_inverse=True)
    last = len(parts.layers) - 1
    for number, layer in enumerate(parts.layers):
        attention, norm = layer.self_attn, layer.input_layernorm
        linear = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [part.bias for part in linear if part.bias is not None]
        queries, keys, values, states = projected(
            states,
            norm.weight,
            [*(part.weight for part in linear), *biases],
            (cos[0], sin[0]),
            eps=norm.variance_epsilon,
        )
        turned = (part.transpose(0, 1) for part in (queries, keys, values))
        mixed = layout.attend(*turned, attention.scaling).flatten(1)
        if number == last:
            mixed, states = mixed.index_select(0, read), states.index_select(0, read)
        states = _mlp(layer, states + F.linear(mixed, attention.o_proj.weight))
    states = normed(states, parts.norm.weight, eps=parts.norm.variance_epsilon)
    return states.index_select(0, places.flatten()).unflatten(0, places.shape)


def _mlp(layer: Any, states: Tensor) -> Tensor:  # noqa: ANN401 - a family's own class
    mlp, norm = layer.mlp, layer.post_attention_layernorm
    weights = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    return gated(states, norm.weight, weights, eps=norm.variance_epsilon)
