"""What of a model can be made smaller: its units, the sizes they may have, and plans of sizes.

A unit is the attention or the MLP of one layer. Its size counts what is removed together: groups of
attention heads that share a KV head, or channels of the MLP. Widths of a head are never touched, so
that rotary positions stay valid. Not here: weights (`variants.py`, `slicing.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

from trainers.errors import ConfigError

UnitKind = Literal["attention", "mlp"]
KINDS: tuple[UnitKind, UnitKind] = ("attention", "mlp")
SLICED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""The `model_type` of the models that can be sliced: each passed the tests of `slicing.py`."""
LEVELS = (0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Shares of a unit that may stay; 0 drops it, and sizes are snapped down."""
DENSE_BITS = 16
"""The bits of a unit whose weights stay in the type of the model."""


class Unit(NamedTuple):
    """The attention or the MLP of one layer."""

    layer: int
    kind: UnitKind


class Choice(NamedTuple):
    """What becomes of a unit: its size, 0 where it is dropped, and the bits of its weights."""

    size: int
    bits: int = DENSE_BITS


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes of a model, as far as slicing reads them.

    Attributes:
        multiple: channels of an MLP stay a multiple of it: 8 on a CPU, 64 or 128 on a GPU.
    """

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    multiple: int = 8

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a KV head; they stay or go together."""
        return self.num_heads // self.num_kv_heads

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units, in the order they compute in."""
        return tuple(Unit(layer, kind) for layer in range(self.num_layers) for kind in KINDS)

    def full(self, kind: UnitKind) -> int:
        """Return the size of a unit that is left as it is."""
        return self.num_kv_heads if kind == "attention" else self.intermediate_size

    def snapped(self, kind: UnitKind, level: float) -> int:
        """Return the size of a level in [0, 1], snapped down; a level above 0 keeps something."""
        full = self.full(kind)
        if level in (0.0, 1.0):
            return int(level * full)
        step = 1 if kind == "attention" else self.multiple
        return min(full, max(step, int(level * full) // step * step))

    def sizes(self, kind: UnitKind, levels: Sequence[float] = LEVELS) -> tuple[int, ...]:
        """Return the distinct sizes of the levels, smallest first."""
        return tuple(sorted({self.snapped(kind, level) for level in levels}))

    def parameters(self, kind: UnitKind, size: int) -> int:
        """Return the weights of a unit of `size`, without biases and norms."""
        if kind == "mlp":
            return 3 * self.hidden_size * size
        return 2 * self.hidden_size * self.head_dim * (self.heads_per_group + 1) * size

    def kv_numbers(self, kind: UnitKind, size: int) -> int:
        """Return the numbers that a unit keeps in the KV cache per token."""
        return 2 * self.head_dim * size if kind == "attention" else 0

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, and of the head where it is not the same."""
        return (1 if self.tied else 2) * self.vocab_size * self.hidden_size


def geometry_of(config: Any, *, multiple: int = 8) -> Geometry:  # noqa: ANN401 - of any family
    """Read the sizes of a model's configuration.

    Args:
        config: as transformers loads it.
        multiple: see `Geometry`.

    Raises:
        ConfigError: the family cannot be sliced, or its heads do not form equal groups.
    """
    fields: Mapping[str, Any] = config.to_dict()
    family = fields.get("model_type")
    if family not in SLICED_FAMILIES:
        raise ConfigError(
            f"a model of the family {family} cannot be sliced. These can: "
            f"{', '.join(SLICED_FAMILIES)}. Choose a model of one of them."
        )
    heads = int(fields["num_attention_heads"])
    groups = int(fields.get("num_key_value_heads") or heads)
    if heads % groups:
        raise ConfigError(
            f"{heads} attention heads do not form equal groups over {groups} KV heads, so no head "
            "can be removed with its group. Choose another model."
        )
    hidden = int(fields["hidden_size"])
    return Geometry(
        family=family,
        num_layers=int(fields["num_hidden_layers"]),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=int(fields.get("head_dim") or hidden // heads),
        intermediate_size=int(fields["intermediate_size"]),
        vocab_size=int(fields["vocab_size"]),
        tied=bool(fields.get("tie_word_embeddings")),
        multiple=multiple,
    )


@final
@dataclass(frozen=True, slots=True)
class SizePlan:
    """A choice for every unit of a model, in the order of `Geometry.units`; hashable."""

    choices: tuple[Choice, ...]

    def of(self, unit: Unit) -> Choice:
        """Return the choice of a unit."""
        return self.choices[2 * unit.layer + KINDS.index(unit.kind)]

    @property
    def layers(self) -> tuple[tuple[Choice, Choice], ...]:
        """The choices of attention and MLP, layer by layer."""
        return tuple(zip(self.choices[::2], self.choices[1::2], strict=True))

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers of which something stays."""
        return tuple(
            number for number, (heads, mlp) in enumerate(self.layers) if heads.size or mlp.size
        )


def dense_plan(geometry: Geometry) -> SizePlan:
    """Return the plan that changes nothing."""
    return SizePlan(tuple(Choice(geometry.full(unit.kind)) for unit in geometry.units))


def uniform_plan(
    geometry: Geometry, *, groups: int, channels: int, dropped: Sequence[int] = ()
) -> SizePlan:
    """Return the plan of one size per kind, without the layers `dropped`.

    Raises:
        ConfigError: a size that the model has not, or no layer is left.
    """
    for kind, size in zip(KINDS, (groups, channels), strict=True):
        if not 0 < size <= geometry.full(kind):
            raise ConfigError(
                f"the {kind} of a layer has sizes from 1 to {geometry.full(kind)}, got {size}"
            )
    left = set(range(geometry.num_layers)) - set(dropped)
    if not left or set(dropped) - set(range(geometry.num_layers)):
        raise ConfigError(
            f"layers {sorted(dropped)} cannot be dropped from {geometry.num_layers}: name layers "
            "that exist, and leave one."
        )
    choices: list[Choice] = []
    for layer in range(geometry.num_layers):
        choices += [Choice(groups), Choice(channels)] if layer in left else [Choice(0), Choice(0)]
    return SizePlan(tuple(choices))


def uniform_sizes(plan: SizePlan) -> tuple[int, int]:
    """Return (groups, channels) that every layer of a plan has, apart from dropped ones.

    Raises:
        ConfigError: layers differ, or keep only one of their units: no plain folder holds that.
    """
    sizes = {(heads.size, mlp.size) for heads, mlp in plan.layers if heads.size or mlp.size}
    if len(sizes) != 1 or 0 in next(iter(sizes)):
        raise ConfigError(
            f"the layers of this plan have {len(sizes)} different shapes, and a plain folder holds "
            "layers of one shape. Search in the uniform space."
        )
    return next(iter(sizes))
