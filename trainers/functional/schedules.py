"""Learning rates as a pure function of progress: nothing to save, nothing to drift on resume."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def rate_factor(
    progress: float, schedule: Schedule, *, warmup: float = 0.0, floor: float = 0.0
) -> float:
    """Return the factor of the peak learning rate at `progress` in [0, 1).

    Args:
        progress: share of the run that is done.
        schedule: course after the warm-up; all but constant end at `floor`.
        warmup: share of the run over which the factor rises linearly from 0.
        floor: factor at the end.

    Raises:
        KeyError: another schedule.
    """
    if progress < warmup:
        return progress / warmup
    rest = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    course = {
        "constant": 1.0,
        "linear": 1.0 - rest,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * rest)),
    }[schedule]
    return 1.0 if schedule == "constant" else floor + (1.0 - floor) * course
