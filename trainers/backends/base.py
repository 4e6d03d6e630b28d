"""The contract of an engine: one model, its optimizer, forward, backward, step."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Engine(ABC):
    """One model with its optimizer, over all ranks.

    `backward` takes a loss that is a sum over this rank's actions divided by the *global* count;
    an engine whose library averages over ranks or accumulation steps undoes that itself.
    """

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The bare model: for its weights, its configuration and generation, not for training."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where inputs must be."""

    @abstractmethod
    def forward(self, *args: Any, last: bool = True, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run the model through its wrapper; the bare module would skip the wrapper's hooks.

        Args:
            args: passed to the model.
            last: True for the last micro-batch of an optimizer step; ranks sum gradients after it.
            kwargs: passed to the model.
        """

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` [], of which every rank holds its part of a sum."""

    @abstractmethod
    def clip(self) -> float:
        """Clip the gradient.

        Returns:
            The gradient's norm before clipping, over all ranks.

        Raises:
            NonFiniteError: on every rank; no weight is changed.
        """

    @abstractmethod
    def step(self) -> None:
        """Step with the clipped gradient, and clear it."""

    @abstractmethod
    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of every parameter group."""

    @abstractmethod
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full tensor) one at a time; a collective where weights are sharded."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimizer state as nested dicts of tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, bit for bit."""

    @abstractmethod
    def offload(self) -> None:
        """Move the optimizer's state off the GPU while something else needs it."""

    @abstractmethod
    def reload(self) -> None:
        """Undo `offload`."""
