"""What a plan costs: latency as it was measured, parameters, bytes, and numbers of the KV cache."""

from dataclasses import dataclass
from typing import final

import numpy as np

from trainers.compress.latency import LatencyTable
from trainers.compress.units import DENSE_BITS, KINDS, Choice, Geometry, SizePlan, UnitKind
from trainers.errors import ConfigError

SCALE_BYTES = 4
"""Of the scale of one row of quantized weights."""


@final
@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of units, in the order of `names`.

    Attributes:
        geometry: of the dense model.
        weight_bytes: of one dense weight.
        latency: seconds of units; None leaves latency out.
    """

    geometry: Geometry
    weight_bytes: int = 4
    latency: LatencyTable | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds of cost."""
        timed = ("latency",) if self.latency else ()
        return (*timed, "params", "bytes", "kv")

    def unit(self, kind: UnitKind, choice: Choice) -> np.ndarray:
        """Return the costs [M] of a choice of a unit.

        Raises:
            ConfigError: a latency of quantized weights, which was not measured.
        """
        weights = self.geometry.parameters(kind, choice.size)
        memory = float(weights * self.weight_bytes)
        if choice.bits != DENSE_BITS:
            if self.latency:
                raise ConfigError(
                    "the latency of quantized weights is not measured. Search with one of "
                    "quantized weights and a budget of latency."
                )
            memory = weights * choice.bits / 8 + self._rows(kind, choice.size) * SCALE_BYTES
        timed = [self.latency.seconds(kind, choice)] if self.latency else []
        return np.array([*timed, weights, memory, self.geometry.kv_numbers(kind, choice.size)])

    @property
    def constant(self) -> np.ndarray:
        """[M] what every plan costs: embedding and head."""
        weights = self.geometry.embedding_parameters
        timed = [self.latency.constant] if self.latency else []
        return np.array([*timed, weights, weights * self.weight_bytes, 0.0])

    def plan(self, plan: SizePlan) -> np.ndarray:
        """Return the costs [M] of a plan."""
        units = zip(KINDS * self.geometry.num_layers, plan.choices, strict=True)
        return self.constant + sum(self.unit(kind, choice) for kind, choice in units)

    def _rows(self, kind: UnitKind, size: int) -> int:
        """Count the rows of the weights of a unit."""
        if kind == "mlp":
            return 2 * size + self.geometry.hidden_size
        heads = size * (self.geometry.heads_per_group + 2)
        return heads * self.geometry.head_dim + self.geometry.hidden_size
