"""How a supervised stage passes over its rows: which rows a step takes, and at which rate.

Both are functions of the step's number, so that this is all a resumed stage has to know.
"""

import math
from typing import Protocol

import numpy as np

from trainers.functional.schedules import rate_factor

RATE_FLOOR = 0.1


class Passes(Protocol):
    """The settings of a stage that are read here."""

    @property
    def num_epochs(self) -> int:
        """Passes over the rows."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows of a step, over all ranks."""
        ...

    @property
    def learning_rate(self) -> float:
        """Peak rate."""
        ...

    @property
    def warmup_fraction(self) -> float:
        """Share of the steps with a rising rate."""
        ...


def num_steps(num_rows: int, stage: Passes) -> int:
    """Return the optimizer steps of the whole stage; an epoch's last one may be smaller."""
    return stage.num_epochs * math.ceil(num_rows / stage.batch_size)


def rows_of_step(step: int, num_rows: int, stage: Passes, seed: int) -> list[int]:
    """Return the row numbers of an optimizer step, over all ranks."""
    epoch, position = divmod(step, math.ceil(num_rows / stage.batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(num_rows)
    start = position * stage.batch_size
    return order[start : start + stage.batch_size].tolist()


def rate(step: int, total: int, stage: Passes) -> float:
    """Return the rate of a step, the first being 0, of `total`."""
    progress = (step + 1) / total
    warmup = stage.warmup_fraction
    return stage.learning_rate * rate_factor(progress, "cosine", warmup=warmup, floor=RATE_FLOOR)
