"""The contract of an engine: one model, its optimizer, forward, backward, step."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
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

    @property
    @abstractmethod
    def is_sharded(self) -> bool:
        """True where the bare model's weights are not there, and `weights` gathers them."""

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
    def weights(self, *, trained: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full tensor) one at a time; a collective where weights are sharded.

        Args:
            trained: only those that learn; beside adapters the rest never changes.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return this rank's pieces of what learns and of its optimizer's state, on the CPU.

            {"weights": {name: piece}, "optimizer": {kind: {name: piece}}, "starts": {name: int}}

        A piece is a run of a tensor's numbers, from `starts` on (0 where it is not named), in
        float32. No number is in two ranks' pieces, so an engine of any kind, at any number of
        ranks, can take up what another left. Weights that do not learn are those it began with.
        """

    @abstractmethod
    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `state_dict` returned on every rank, bit for bit.

        Raises:
            ValueError: they are of another model.
        """

    @abstractmethod
    def offload(self) -> None:
        """Move the optimizer's state off the GPU while something else needs it."""

    @abstractmethod
    def reload(self) -> None:
        """Undo `offload`."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory of optimizer and gradients back, and that of weights shared out.

        The last call. The bare model keeps what weights it has.
        """


def copy_pieces(
    target: Tensor, start: int, name: str, pieces: Sequence[tuple[int, Tensor]]
) -> None:
    """Copy into `target` [n], the numbers of a tensor from `start` on, what pieces hold of it.

    Args:
        target: [n] written in place.
        start: the place of its first number in the tensor.
        name: of the tensor, for the message.
        pieces: (start, numbers of any shape), which do not overlap.

    Raises:
        ValueError: they do not hold all of it.
    """
    end, filled = start + target.numel(), 0
    for begin, piece in pieces:
        low, high = max(start, begin), min(end, begin + piece.numel())
        if low < high:
            part = piece.reshape(-1)[low - begin : high - begin]
            target[low - start : high - start].copy_(part)
            filled += high - low
    if filled != target.numel():
        raise ValueError(f"{name} has {target.numel()} numbers here, and {filled} were saved")


def pieces_of(
    states: Sequence[Mapping[str, Any]], table: Sequence[str], name: str
) -> list[tuple[int, Tensor]]:
    """Return (start, numbers) of a tensor in all ranks' states; none: it was not saved."""
    pieces = []
    for state in states:
        inner: Mapping[str, Any] = state
        for key in table:
            inner = inner.get(key, {})
        if name in inner:
            pieces.append((int(state["starts"].get(name, 0)), inner[name]))
    return pieces


def learning(module: nn.Module, *, trained: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of a module, a tied one once; all of them unless `trained`."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or not trained:
            yield name, parameter


def check_names(states: Sequence[Mapping[str, Any]], mine: Iterator[str], engine: str) -> None:
    """Refuse the weights of another model.

    Raises:
        ValueError: names differ.
    """
    saved = {name for state in states for name in state["weights"]}
    if differing := saved ^ set(mine):
        raise ValueError(f"the {engine}'s weights differ in name: {sorted(differing)[:3]}")
