"""Bytes that stand in memory for a model, as functions of its number of parameters. No torch.

    torch       a parameter: 4 weight + 4 gradient + 8 Adam's two moments, all float32, on each rank
    DeepSpeed   of N ranks, with weights of w bytes (2 in bfloat16, else 4) and float32 masters:

    stage         weights   gradients         masters, moments
    0             4         4                 8
    1             w         4; bfloat16: 6    12 / N
    2             w         4 / N             12 / N
    3             w / N     4 / N             12 / N

Offloaded optimizers lie in host memory with their gradients, offloaded weights as well. Buckets,
layers that are gathered and copies of a step are those of DeepSpeed 0.19 as its JSON sets them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainers.backends.zero.json import can_leave

WEIGHT = GRADIENT = BUCKET = MASTER = 4
MOMENTS = 8
BFLOAT16 = 2

COPIES = 8
"""Of a number that torch's Adam steps, which takes the place of DeepSpeed's on a CPU: roots."""

REDUCED_AT_ONCE = 500_000_000
"""Gradients that DeepSpeed sums up over ranks at once at stage 0; no setting."""


FILE = 50_000_000_000
"""Bytes of weights that transformers writes at once: those of a GPU are copied to the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """Bytes of one model on one rank.

    Attributes:
        weights: always there.
        optimizer: masters and moments; moments come with the first optimizer step.
        gradients: there while learning.
        buckets: always there: what gradients are summed up in over ranks.
        host: of weights, optimizer and gradients, what lies in host memory; not among the others.
        window: most layers that are gathered at once in a pass.
        step: copies that an optimizer step makes, when no activation is there.
    """

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    buckets: int = 0
    host: int = 0
    window: int = 0
    step: int = 0

    @property
    def held(self) -> int:
        """Bytes that stay between phases."""
        return self.weights + self.optimizer + self.buckets

    def __add__(self, other: "ModelState") -> "ModelState":
        """Return both together; passes and steps come one after another."""
        return ModelState(
            weights=self.weights + other.weights,
            optimizer=self.optimizer + other.optimizer,
            gradients=self.gradients + other.gradients,
            buckets=self.buckets + other.buckets,
            host=self.host + other.host,
            window=max(self.window, other.window),
            step=max(self.step, other.step),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """How the ranks of a run hold their models.

    Attributes:
        ranks: processes.
        is_gpu: each has a GPU; else host memory is the only one there is.
        json: what DeepSpeed is given; None: plain torch.
    """

    ranks: int = 1
    is_gpu: bool = False
    json: Mapping[str, Any] | None = None

    @property
    def stage(self) -> int | None:
        """ZeRO's stage; None for plain torch."""
        return None if self.json is None else self.json["zero_optimization"]["stage"]

    @property
    def weight(self) -> int:
        """Bytes of a weight that is computed with."""
        is_bf16 = self.json is not None and "bf16" in self.json and self.stage
        return BFLOAT16 if is_bf16 else WEIGHT

    def _part(self, num_parameters: int) -> int:
        return -(-num_parameters // self.ranks)

    def _is_away(self, part: str) -> bool:
        return self.json is not None and f"offload_{part}" in self.json["zero_optimization"]

    def frozen(self, num_parameters: int) -> ModelState:
        """Return what a rank holds of a model that is only asked."""
        return self._placed(self._frozen(num_parameters))

    def _frozen(self, num_parameters: int) -> ModelState:
        """Return the weights alone."""
        if self.json is None or self.stage != 3:
            return ModelState(weights=self.weight * num_parameters)
        section = self.json["zero_optimization"]
        live = section["stage3_max_live_parameters"] + section["stage3_prefetch_bucket_size"]
        share, is_away = self.weight * self._part(num_parameters), self._is_away("param")
        return ModelState(
            weights=0 if is_away else share,
            host=share if is_away else 0,
            window=self.weight * min(num_parameters, live) if self.ranks > 1 or is_away else 0,
        )

    def trained(self, num_parameters: int) -> ModelState:
        """Return what a rank holds of a model that learns."""
        if self.json is None:
            return ModelState(
                weights=WEIGHT * num_parameters,
                optimizer=MOMENTS * num_parameters,
                gradients=GRADIENT * num_parameters,
                buckets=BUCKET * num_parameters if self.ranks > 1 else 0,
            )
        return self._placed(self._frozen(num_parameters) + self._learned(num_parameters, self.json))

    def _learned(self, num_parameters: int, json: Mapping[str, Any]) -> ModelState:
        """Return what DeepSpeed holds beyond the weights."""
        part, stage, section = self._part(num_parameters), self.stage, json["zero_optimization"]
        if not stage:
            summed = min(num_parameters, REDUCED_AT_ONCE) if self.ranks > 1 else 0
            return ModelState(
                optimizer=MOMENTS * num_parameters,
                gradients=GRADIENT * num_parameters,
                buckets=BUCKET * summed,
            )
        is_away = self._is_away("optimizer")
        optimizer = (MASTER + MOMENTS) * part
        flat = min(part, section["sub_group_size"]) if stage == 3 else part
        pass_of_adam = COPIES * flat if json["optimizer"]["params"].get("torch_adam") else 0
        buckets = self._buckets(num_parameters, section)
        if not is_away:
            gradients = GRADIENT * (num_parameters if stage == 1 else part)
            if stage == 1 and self.weight == BFLOAT16:  # as they come, beside their sums
                gradients += BFLOAT16 * num_parameters
            owned = self.weight * part if stage == 2 else 0  # as they were reduced
            return ModelState(
                optimizer=optimizer,
                gradients=gradients,
                buckets=buckets + owned,
                step=GRADIENT * flat + pass_of_adam,
            )
        # Gradients: those of the step, and those that micro-batches are added up in. Stage 2 keeps
        # those of the last one as well.
        more = {1: self.weight, 2: 2 * self.weight, 3: GRADIENT}[json["zero_optimization"]["stage"]]
        return ModelState(
            gradients=self.weight * num_parameters if stage == 1 else 0,
            buckets=buckets,
            host=optimizer + (GRADIENT + more) * part,
            step=pass_of_adam,
        )

    def _buckets(self, num_parameters: int, section: Mapping[str, Any]) -> int:
        """Return what gradients are collected in before they are reduced."""
        size = section["reduce_bucket_size"]
        if not self.is_gpu:  # memory that is not written to is not taken
            size = min(size, num_parameters)
        pair = 2 if self.stage == 2 and section["overlap_comm"] else 1
        return pair * size * (BUCKET if self.stage == 1 else self.weight)

    def _placed(self, state: ModelState) -> ModelState:
        """Return the same where host memory is the only one there is."""
        if self.is_gpu or not state.host:
            return state
        return state + ModelState(optimizer=state.host, host=-state.host)

    def gathered(self, num_parameters: int) -> int:
        """Return what a rank receives of the others in one pass over a model."""
        shared = self.stage == 3
        return self.weight * (num_parameters - self._part(num_parameters)) if shared else 0

    @property
    def can_leave(self) -> bool:
        """Tell whether moments and masters can leave a GPU between phases."""
        return self.is_gpu and (self.json is None or can_leave(self.json))

    def copied(self, num_parameters: int, most: int) -> ModelState:
        """Return the copy that text is written with, where weights are shared out.

        Args:
            num_parameters: of the policy.
            most: bytes that it may take; a larger one is not made.
        """
        size = self.weight * num_parameters
        return ModelState(weights=size if self.stage == 3 and size <= most else 0)

    def saved(self, num_learned: int, *, is_main: bool) -> int:
        """Return the copy on the host that a rank makes of its part of the state, to save it."""
        state = checkpoint_bytes(num_learned)
        if not self.stage:  # all hold the same, and rank 0 saves it
            return state if is_main else 0
        return self._part(state)

    def exported(self, num_parameters: int, *, is_adapted: bool) -> int:
        """Return what rank 0 copies to the host of a model that it exports."""
        size = self.weight * num_parameters
        if is_adapted:  # its weights, and those that adapters were added to
            return 2 * size
        if self.stage == 3:
            return size
        return min(size, FILE) if self.is_gpu else 0  # what lies on the host is written from there


def checkpoint_bytes(num_parameters: int) -> int:
    """Return the size in a checkpoint of a model that learns: its weights and moments."""
    return (WEIGHT + MOMENTS) * num_parameters


def export_bytes(num_parameters: int) -> int:
    """Return the size of a model's folder of weights."""
    return WEIGHT * num_parameters
