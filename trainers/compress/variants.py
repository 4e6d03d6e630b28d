"""Smaller weights of every unit: which inputs stay, and a weight that makes up for the others.

    score of input j:   ||W_:j|| * sqrt(G_jj)        (Wanda; summed over a group of heads)
    weight:             W' = W G_:S (G_SS + lambda I)^-1,   lambda = 0.01 mean(diag G)

W [D, I] is o_proj or down_proj and G = E[x x^T] [I, I] of its inputs over calibration tokens; W' is
the ridge regression of what the unit gave on the inputs that stay. Sources: Sun et al. 2023,
arXiv:2306.11695; ridge: the closed form of least squares.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainers.compress.slicing import PROJECTIONS, Variant
from trainers.compress.token_rows import TokenRows
from trainers.compress.units import DENSE_BITS, Choice, Geometry, Unit, UnitKind, geometry_of
from trainers.errors import ConfigError

RIDGE = 1e-2
"""lambda as a share of the mean of G's diagonal."""
LEAST_TOKENS = 4
"""Calibration tokens per input of a unit, below which its Gram matrix says too little: fewer tokens
than inputs leave directions without any."""


@final
@dataclass(frozen=True, slots=True)
class Method:
    """How a unit is made smaller.

    Attributes:
        score: what an input is ranked by: its weight and its size in the data, or its weight alone.
        compensates: whether the weight makes up for what is gone.
    """

    score: Literal["wanda", "magnitude"] = "wanda"
    compensates: bool = True


OURS = Method()
WANDA = Method(compensates=False)
MAGNITUDE = Method(score="magnitude", compensates=False)


def last_linear(model: nn.Module, unit: Unit) -> nn.Linear:
    """Return o_proj or down_proj of a unit."""
    linear = model.get_submodule(f"model.layers.{unit.layer}.{PROJECTIONS[unit.kind][-1]}")
    assert isinstance(linear, nn.Linear), "a family of SLICED_FAMILIES has plain linear layers"
    return linear


@contextmanager
def noting_inputs(model: nn.Module, units: tuple[Unit, ...], mask: Tensor,
                  grams: dict[Unit, Tensor]) -> Iterator[None]:  # fmt: skip
    """Add x x^T of the inputs of every unit to `grams`, [I, I] each, while the block runs.

    Args:
        model: runs inside.
        units: those that are watched.
        mask: [B, L] True on real tokens.
        grams: float32 sums, changed in place.
    """

    def hook_of(unit: Unit):  # noqa: ANN202 - a hook of torch
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0][mask].float()
            grams[unit].addmm_(rows.T, rows)

        return hook

    handles = [last_linear(model, unit).register_forward_pre_hook(hook_of(unit)) for unit in units]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def gram_matrices(model: PreTrainedModel, rows: TokenRows, *, batch: int = 8) -> dict[Unit, Tensor]:
    """Return E[x x^T], [I, I] float32, of the inputs of every unit's last linear layer.

    Args:
        model: the dense one.
        rows: calibration tokens; padding is left out.
        batch: rows of one pass.

    Raises:
        ConfigError: there are too few tokens for the widest unit.
    """
    geometry = geometry_of(model.config)
    widest = max(last_linear(model, unit).in_features for unit in geometry.units[:2])
    tokens = int(rows.mask.sum())
    if tokens < LEAST_TOKENS * widest:
        raise ConfigError(
            f"the calibration set has {tokens} tokens, and the widest unit has {widest} inputs: "
            f"it needs {LEAST_TOKENS * widest}. Give more text."
        )
    sizes = {unit: last_linear(model, unit).in_features for unit in geometry.units}
    grams = {unit: torch.zeros(size, size) for unit, size in sizes.items()}
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        with noting_inputs(model, geometry.units, part.mask, grams):
            model.model(input_ids=part.tokens, use_cache=False)
    return {unit: gram / tokens for unit, gram in grams.items()}


def ridge_weight(weight: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """Return W' [D, S] of a weight [D, I], a Gram matrix [I, I] and the inputs [S] that stay."""
    gram = gram.double()
    inner = gram[kept][:, kept]
    inner.diagonal().add_(RIDGE * gram.diagonal().mean())
    mixed = weight.double() @ gram[:, kept]
    return torch.linalg.solve(inner, mixed.T).T.to(weight.dtype)


def quantized(weight: Tensor, bits: int) -> Tensor:
    """Return a weight [D, I] rounded to `bits` bits with one scale per row, in its own type."""
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / most
    return (weight / scale).round().clamp(-most, most) * scale


@final
class WeightVariants:
    """The smaller weights of every unit of a model, each computed once.

    Args:
        model: the dense one; its weights are read where they are.
        grams: [I, I] of every unit.
    """

    def __init__(self, model: PreTrainedModel, grams: Mapping[Unit, Tensor]) -> None:
        self._model = model
        self._grams = grams
        self._geometry = geometry_of(model.config)
        self._made: dict[tuple[Unit, int, Method], Variant] = {}

    @property
    def geometry(self) -> Geometry:
        """Of the dense model."""
        return self._geometry

    def scores(self, unit: Unit, method: Method = OURS) -> Tensor:
        """Return the score [size] of every group of heads, or of every channel."""
        weight = last_linear(self._model, unit).weight.detach().float()
        scores = weight.norm(dim=0)
        if method.score == "wanda":
            scores = scores * self._grams[unit].diagonal().clamp(min=0).sqrt()
        return scores.reshape(self._geometry.full(unit.kind), -1).sum(1)

    def inputs(self, kind: UnitKind, members: Tensor) -> Tensor:
        """Return the inputs [S] of the groups or channels `members` [size], ascending."""
        geometry = self._geometry
        width = geometry.heads_per_group * geometry.head_dim if kind == "attention" else 1
        return (members.sort().values[:, None] * width + torch.arange(width)).flatten()

    def variant(self, unit: Unit, choice: Choice, method: Method = OURS) -> Variant:
        """Return what a unit keeps in a size above 0; a full unit keeps its weight to the bit."""
        key = (unit, choice.size, method)
        if key not in self._made:
            weight = last_linear(self._model, unit).weight.detach()
            members = self.scores(unit, method).topk(choice.size).indices
            kept = self.inputs(unit.kind, members)
            if len(kept) == weight.shape[1] or not method.compensates:
                self._made[key] = Variant(kept, weight[:, kept])
            else:
                self._made[key] = Variant(kept, ridge_weight(weight, self._grams[unit], kept))
        return self._made[key]

    def padded(self, unit: Unit, choice: Choice, method: Method = OURS) -> dict[str, Tensor]:
        """Return what replaces tensors of a layer, by name, so that it computes as if sliced.

        The last weight [D, I] has zeros where inputs are gone; of fewer bits, all are rounded.
        """
        *first, last = PROJECTIONS[unit.kind]
        linear = last_linear(self._model, unit)
        padded = torch.zeros_like(linear.weight)
        if not choice.size:
            parts = {f"{last}.weight": padded}
            bias = torch.zeros_like(padded[:, 0])
            return parts | ({} if linear.bias is None else {f"{last}.bias": bias})
        variant = self.variant(unit, choice, method)
        is_dense = choice.bits == DENSE_BITS
        weight = variant.weight if is_dense else quantized(variant.weight, choice.bits)
        padded[:, variant.kept] = weight
        parts = {f"{last}.weight": padded}
        for name in () if is_dense else first:
            weight = self._model.get_parameter(f"model.layers.{unit.layer}.{name}.weight")
            parts[f"{name}.weight"] = quantized(weight.detach(), choice.bits)
        return parts
