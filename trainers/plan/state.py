"""Bytes that stand in memory for a model, as functions of its number of parameters. No torch.

    a parameter: 4 weight + 4 gradient + 8 Adam's two moments, all float32

A rank of the torch backend holds all of it; data parallel ranks keep the gradients a second time,
in the buckets they are summed in.
"""

from dataclasses import dataclass

WEIGHT = GRADIENT = BUCKET = 4
MOMENTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """Bytes of one model on one rank.

    Attributes:
        weights: always there.
        optimizer: there from the first optimizer step on.
        gradients: there while learning.
        buckets: always there on several ranks.
    """

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    buckets: int = 0

    @property
    def held(self) -> int:
        """Bytes that stay between phases."""
        return self.weights + self.optimizer + self.buckets

    def __add__(self, other: "ModelState") -> "ModelState":
        return ModelState(
            weights=self.weights + other.weights,
            optimizer=self.optimizer + other.optimizer,
            gradients=self.gradients + other.gradients,
            buckets=self.buckets + other.buckets,
        )


def trained(num_parameters: int, ranks: int = 1) -> ModelState:
    """Return what a rank holds of a model that learns."""
    return ModelState(
        weights=WEIGHT * num_parameters,
        optimizer=MOMENTS * num_parameters,
        gradients=GRADIENT * num_parameters,
        buckets=BUCKET * num_parameters if ranks > 1 else 0,
    )


def frozen(num_parameters: int) -> ModelState:
    """Return what a rank holds of a model that is only asked."""
    return ModelState(weights=WEIGHT * num_parameters)


def checkpoint_bytes(num_parameters: int) -> int:
    """Return the size in a checkpoint of a model that learns: its weights and moments."""
    return (WEIGHT + MOMENTS) * num_parameters


def export_bytes(num_parameters: int) -> int:
    """Return the size of a model's folder of weights."""
    return WEIGHT * num_parameters
