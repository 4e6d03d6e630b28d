"""The contract of a collector, and what it needs of a learner and a reference."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from trainers.batch import Experience, Inputs, Metrics, Rollout
from trainers.functional.distillation import TeacherComparison, TeacherModel


class Actor(Protocol):
    """What a collector needs of the learner."""

    @property
    def policy_version(self) -> int:
        """Optimizer steps taken: which weights these are."""
        ...

    @property
    def policy_module(self) -> nn.Module:
        """The bare policy."""
        ...

    def logprobs(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Return [B, T] log-probabilities of the actions; no gradient, by token budget."""
        ...

    def values(self, inputs: Inputs) -> Tensor | None:
        """Return [B, T + 1] values of text, [B, T] of control; None without a critic."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the policy's (name, tensor)."""
        ...


class Student(Actor, Protocol):
    """An actor that a teacher's distributions can be compared with."""

    def compared(
        self, teacher: TeacherModel, inputs: Inputs, response_mask: Tensor, *, clip: float | None
    ) -> TeacherComparison:
        """Compare both at the actions of the mask [B, T]; no gradient, by token budget."""
        ...


class Reference(Protocol):
    """The frozen policy that the KL penalty is measured against."""

    def logprobs(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Return [B, T] log-probabilities of the actions; no gradient, by token budget."""
        ...


class Collector(ABC):
    """Acts in environments with the learner's current weights."""

    @abstractmethod
    def collect(self, actor: Actor, iteration: int) -> Rollout:
        """Return this rank's part of an iteration's episodes.

        Raises:
            RewardError: on every rank, when too many rewards failed.
        """

    @abstractmethod
    def record(self, experience: Experience) -> None:
        """Take note of the advantages, for the samples shown."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """Return the figures of the last rollout, pooled over all ranks."""

    @abstractmethod
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Return the last rollout's rows, this rank's, as written to samples.jsonl."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that the next rollout depends on, as plain values that it does not change."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    @abstractmethod
    def close(self) -> None:
        """Close the environments and reward workers."""
