"""The supervised loop: one optimizer step at a time, by the loss of a stage.

    loss = (1/N) sum of the loss over what a step counts, over all ranks

N is the count of a step over all ranks (response tokens, or rows), so the gradient does not depend
on how rows are split into micro-batches or over ranks. `fit` is a generator of metrics, as
`ppo.train` is, and does no I/O. Its step number is all it remembers: the order of an epoch is a
function of (seed, epoch), the rate one of progress.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainers.backends.base import Engine
from trainers.batch import Metrics
from trainers.config import Config, RewardModelConfig, SFTConfig
from trainers.distributed.collectives import World, global_max, global_sum
from trainers.errors import NonFiniteError
from trainers.functional.schedules import rate_factor

RATE_FLOOR = 0.1
"""Share of the peak rate that the last step has."""
StageName = Literal["sft", "reward_model"]
ExampleT = TypeVar("ExampleT")
BatchT = TypeVar("BatchT")


@dataclass(frozen=True, kw_only=True)
class Loss(ABC, Generic[ExampleT, BatchT]):
    """The loss of a stage: how its rows become batches, and what is learned of them.

    Attributes:
        stage: its name, with which its metrics begin, and that of its settings.
        held_out_loss: the metric of `measure` that is the loss.
        config: settings.
        world: this process among its peers.
        device: of the engine.
    """

    stage: ClassVar[StageName]
    held_out_loss: ClassVar[str]
    config: Config
    world: World
    device: torch.device

    @property
    def settings(self) -> SFTConfig | RewardModelConfig:
        """Settings of the stage."""
        return self.config.sft if self.stage == "sft" else self.config.reward_model

    @abstractmethod
    def count(self, rows: Sequence[ExampleT]) -> int:
        """Return what the mean over these rows divides by."""

    @abstractmethod
    def batches(self, rows: Sequence[ExampleT]) -> list[BatchT]:
        """Group rows by the token budget, each group padded to one shape."""

    @abstractmethod
    def blank(self) -> BatchT:
        """Return a batch without loss, for a rank that has less to do than another."""

    @abstractmethod
    def sums(self, engine: Engine, batch: BatchT, *, last: bool) -> Mapping[str, Tensor]:
        """Return sums [] over a batch by name: `loss`, with a gradient, first.

        `last` is True for the last batch of a step, as of `Engine.forward`.
        """

    @abstractmethod
    def measure(
        self, engine: Engine, rows: Sequence[ExampleT], learned: Sequence[ExampleT]
    ) -> Metrics:
        """Return the metrics of held-out rows; a collective.

        `learned` is what the stage learns from.
        """


def num_steps(num_rows: int, settings: SFTConfig | RewardModelConfig) -> int:
    """Return the optimizer steps of the whole stage; an epoch's last one may be smaller."""
    return settings.num_epochs * math.ceil(num_rows / settings.batch_size)


def rows_of_step(
    step: int, num_rows: int, settings: SFTConfig | RewardModelConfig, seed: int
) -> list[int]:
    """Return the row numbers of an optimizer step, over all ranks."""
    epoch, position = divmod(step, math.ceil(num_rows / settings.batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(num_rows)
    start = position * settings.batch_size
    return order[start : start + settings.batch_size].tolist()


def rate(step: int, total: int, settings: SFTConfig | RewardModelConfig) -> float:
    """Return the rate of a step, the first being 0, of `total`."""
    factor = rate_factor(
        (step + 1) / total, "cosine", warmup=settings.warmup_fraction, floor=RATE_FLOOR
    )
    return settings.learning_rate * factor


def over_ranks(batches: Sequence[BatchT], blank: BatchT, device: torch.device) -> list[BatchT]:
    """Return as many batches as the rank with the most has, at least one, filled up by blanks."""
    number = int(global_max(torch.tensor(max(len(batches), 1), device=device)))
    return [*batches, *[blank] * (number - len(batches))]


def take_step(engine: Engine, rows: Sequence[ExampleT], loss: Loss[ExampleT, BatchT]) -> Metrics:
    """Take one optimizer step on this rank's share of a step's rows.

    Returns:
        Means of what the loss sums, and the gradient norm, over all ranks.

    Raises:
        NonFiniteError: on every rank, before a weight is changed.
    """
    batches = over_ranks(loss.batches(rows), loss.blank(), engine.device)
    count = float(global_sum(torch.tensor(float(loss.count(rows)), device=engine.device)))
    means: list[Tensor] = []
    names: list[str] = []
    for number, batch in enumerate(batches, start=1):
        sums = loss.sums(engine, batch, last=number == len(batches))
        names = list(sums)
        parts = [value / count for value in sums.values()]
        engine.backward(parts[0])
        means.append(torch.stack([part.detach().double() for part in parts]))
    totals = global_sum(torch.stack(means).sum(0)).tolist()
    if not math.isfinite(totals[0]):
        setting = loss.stage.replace("_", "-")
        raise NonFiniteError(
            f"the loss of the stage {loss.stage} is not finite ({totals[0]}); no weight was "
            f"changed. Often the rate is too high: lower --{setting}.learning-rate."
        )
    figures = {f"{loss.stage}/{name}": total for name, total in zip(names, totals, strict=True)}
    figures[f"{loss.stage}/grad_norm"] = engine.clip()
    engine.step()
    return Metrics.scalars(figures)


def fit(
    engine: Engine,
    rows: Sequence[ExampleT],
    loss: Loss[ExampleT, BatchT],
    *,
    held_out: Sequence[ExampleT] = (),
    start: int = 0,
) -> Iterator[Metrics]:
    """Learn from rows, one optimizer step at a time.

    Args:
        engine: the model and its optimizer.
        rows: what is learned from, the same on every rank.
        loss: of the stage.
        held_out: rows that are measured at the end of each epoch.
        start: steps taken already, by the run this one continues.

    Yields:
        The metrics of each step.
    """
    settings, world, seed = loss.settings, loss.world, loss.config.run.seed
    total = num_steps(len(rows), settings)
    each_epoch = total // max(settings.num_epochs, 1)
    limit = settings.stop_loss if isinstance(settings, SFTConfig) else None

    def has_ended(measured: Metrics) -> bool:
        return limit is not None and measured.values()[loss.held_out_loss] <= limit

    was_measured = limit is not None and held_out and start and start % each_epoch == 0
    if was_measured and has_ended(loss.measure(engine, held_out, rows)):
        return
    for step in range(start, total):
        now = rate(step, total, settings)
        engine.set_learning_rate(now)
        picked = rows_of_step(step, len(rows), settings, seed)[world.rank :: world.size]
        metrics = take_step(engine, [rows[row] for row in picked], loss)
        metrics |= Metrics.scalars({f"{loss.stage}/step": step + 1.0, f"{loss.stage}/lr": now})
        if not held_out or (step + 1) % each_epoch:
            yield metrics
            continue
        measured = loss.measure(engine, held_out, rows)
        yield metrics | measured
        if has_ended(measured):
            return
