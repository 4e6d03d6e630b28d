"""What ends a run before its last iteration: tokens or minutes that it may take."""

from collections.abc import Mapping
from typing import Any, final

import torch

from trainers.config import DistillConfig
from trainers.distributed.collectives import global_max


@final
class RunLimits:
    """Counts the tokens and the minutes of training of a run, over all its starts.

    Args:
        config: of the run; `max_tokens` and `max_minutes` are read.
    """

    def __init__(self, config: DistillConfig) -> None:
        self._config = config
        self._tokens = self._seconds = 0.0

    def count(self, values: Mapping[str, float]) -> None:
        """Take in the figures of an iteration; a collective: the slowest rank's time counts."""
        if self._config.teacher is None:
            return
        spent = torch.tensor(values["timing_s/total"], dtype=torch.float64)
        self._seconds += float(global_max(spent))
        self._tokens = values["train/tokens"]

    @property
    def are_reached(self) -> bool:
        """True where the run ends here; the same on every rank."""
        tokens, minutes = self._config.max_tokens, self._config.max_minutes
        is_long = minutes is not None and self._seconds >= 60.0 * minutes
        return is_long or (tokens is not None and self._tokens >= tokens)

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted."""
        return {"tokens": self._tokens, "seconds": self._seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._tokens, self._seconds = float(state["tokens"]), float(state["seconds"])
