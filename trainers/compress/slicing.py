"""Slices the tensors of a model to one that is truly smaller, and loads everywhere.

All layers that stay have one number of heads and one MLP width; which heads and channels they
keep is free in each. A Llama stays a Llama where its configuration takes the new heads; where
hidden_size is no multiple of their number it becomes a Mistral without a window, which computes
the same.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from trainers.compress.units import Choice, Geometry, SizePlan, Unit, geometry_of, uniform_sizes
from trainers.errors import ConfigError


class Variant(NamedTuple):
    """A unit in a smaller size: what is kept of it, and the weight behind that.

    Attributes:
        kept: [S] numbers of the inputs of o_proj or down_proj that stay, ascending.
        weight: [D, S] of o_proj or down_proj, which may make up for what is gone.
    """

    kept: Tensor
    weight: Tensor


Variants = Callable[[Unit, Choice], Variant]
"""Gives the variant of a unit whose size is not 0."""

PROJECTIONS = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}
"""The linear layers of a unit, the one that is read last at the end."""


def shortened_lists(fields: Mapping[str, Any], kept: tuple[int, ...]) -> dict[str, Any]:
    """Return every list with an entry per layer, with the entries of the layers that stay.

    A list of ids or of class names is none, whatever its length.
    """
    layers = fields["num_hidden_layers"]
    return {
        name: [value[layer] for layer in kept]
        for name, value in fields.items()
        if isinstance(value, list | tuple)
        and len(value) == layers
        and not name.endswith(("token_id", "token_ids", "architectures"))
    }


def smaller_config(config: PreTrainedConfig, plan: SizePlan) -> PreTrainedConfig:
    """Return the configuration of a sliced model.

    Raises:
        ConfigError: the layers differ in shape, or a Llama with biases would get heads that do not
            divide its width.
    """
    geometry = geometry_of(config)
    groups, channels = uniform_sizes(plan)
    heads = groups * geometry.heads_per_group
    fields = config.to_dict()
    fields |= shortened_lists(fields, plan.kept)
    fields |= {
        "num_hidden_layers": len(plan.kept),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": geometry.head_dim,
        "intermediate_size": channels,
    }
    family = fields.pop("model_type")
    fields.pop("architectures", None)
    if family == "llama" and geometry.hidden_size % heads:
        if fields.get("attention_bias") or fields.get("mlp_bias"):
            raise ConfigError(
                f"a Llama with biases needs heads that divide its width {geometry.hidden_size}, "
                f"and this plan has {heads}. Choose another number of heads."
            )
        family = "mistral"
        fields |= {"sliding_window": None}
        for name in ("attention_bias", "mlp_bias", "pretraining_tp"):
            fields.pop(name, None)
    return AutoConfig.for_model(family, **fields)


def group_rows(kept: Tensor, geometry: Geometry) -> Tensor:
    """Return the rows [R] of k_proj and v_proj that belong to inputs `kept` [S] of o_proj."""
    width = geometry.heads_per_group * geometry.head_dim
    groups = kept[::width] // width
    return (groups[:, None] * geometry.head_dim + torch.arange(geometry.head_dim)).flatten()


def sliced_unit(
    state: Mapping[str, Tensor], unit: Unit, variant: Variant, geometry: Geometry
) -> dict[str, Tensor]:
    """Return the tensors of a unit's linear layers in their smaller size.

    Args:
        state: of one layer, names as in `PROJECTIONS`.
        unit: the unit.
        variant: its indices [S] and its last weight [D, S].
        geometry: of the dense model.
    """
    *first, last = PROJECTIONS[unit.kind]
    sliced = {f"{last}.weight": variant.weight}
    if f"{last}.bias" in state:
        sliced[f"{last}.bias"] = state[f"{last}.bias"]
    shared = group_rows(variant.kept, geometry) if unit.kind == "attention" else variant.kept
    for name in first:
        rows = shared if name.endswith(("k_proj", "v_proj")) else variant.kept
        for part in ("weight", "bias"):
            if f"{name}.{part}" in state:
                sliced[f"{name}.{part}"] = state[f"{name}.{part}"][rows]
    return sliced


def slice_model(model: PreTrainedModel, plan: SizePlan, variants: Variants) -> PreTrainedModel:
    """Return a smaller model of a plan; the given one is untouched.

    Args:
        model: the dense one, in any type.
        plan: one shape for all layers that stay.
        variants: what each unit keeps.

    Raises:
        ConfigError: the family cannot be sliced, or no plain model has this shape.
    """
    geometry = geometry_of(model.config)
    config = smaller_config(model.config, plan)
    dense = {name: value.detach() for name, value in model.state_dict().items()}
    state = {name: value for name, value in dense.items() if ".layers." not in name}
    for number, layer in enumerate(plan.kept):
        before = f"model.layers.{layer}."
        own = {
            name.removeprefix(before): value
            for name, value in dense.items()
            if name.startswith(before)
        }
        for unit in geometry.units[2 * layer : 2 * layer + 2]:
            variant = variants(unit, plan.of(unit))
            own |= sliced_unit(own, unit, variant, geometry)
        state |= {f"model.layers.{number}.{name}": value for name, value in own.items()}
    with torch.random.fork_rng(devices=[]):
        smaller = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    smaller.load_state_dict({name: value.to(model.dtype) for name, value in state.items()})
    if model.generation_config is not None:
        smaller.generation_config = model.generation_config
    return smaller.eval()
