"""What a policy sees of a decision: named numbers that describe its units, about in [-1, 1].

U decisions, K actions, F features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from trainers.compress.costs import CostModel
from trainers.compress.database import Database
from trainers.compress.units import KINDS, Choice, Unit
from trainers.compress.variants import last_linear, quantized

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def score_features(scores: torch.Tensor) -> dict[str, float]:
    """Return how uneven the scores [n] of a unit are: quantiles over the largest, and Gini's."""
    ordered = scores.double().sort().values
    largest = float(ordered[-1]) or 1.0
    ranks = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
    total = float(ordered.sum()) or 1.0
    gini = 2 * float((ranks * ordered).sum()) / (len(ordered) * total) - 1 - 1 / len(ordered)
    quantiles = torch.quantile(ordered, torch.tensor(QUANTILES, dtype=torch.float64)) / largest
    named = {f"score_q{int(100 * q)}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)}
    return {**named, "score_gini": gini}


def unit_features(
    database: Database, unit: Unit, costs: CostModel, influence: float
) -> dict[str, float]:
    """Return the features of one unit.

    Args:
        database: of the dense model.
        unit: the unit.
        costs: of units.
        influence: 1 - cos of its layer.
    """
    geometry = database.variants.geometry
    full = Choice(geometry.full(unit.kind))
    dense = costs.plan(database.dense)
    cost = costs.unit(unit.kind, full) / np.maximum(dense, 1e-30)
    shares = {f"{name}_share": float(value) for name, value in zip(costs.names, cost, strict=True)}
    weight = last_linear(database.model, unit).weight.detach().float()
    noise = float((quantized(weight, 8) - weight).square().mean() / weight.square().mean())
    return {
        **{f"is_{kind}": float(kind == unit.kind) for kind in KINDS},
        "depth": unit.layer / geometry.num_layers,
        "block_influence": influence,
        "weight_norm": float(weight.norm()) / weight.numel() ** 0.5,
        "quantization_noise": float(np.log10(noise + 1e-12)) / 10,
        **shares,
        **score_features(database.variants.scores(unit)),
    }


def mean_features(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of features by name."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
