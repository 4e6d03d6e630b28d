"""The interface of a logger: called on rank 0 only; it never ends a run.

To add one: `NAME.py` in this folder with `make_logger()`, and `NAME: bool` in `LogConfig`
(`config/settings.py`); `default.py` makes those that are true.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from trainers.batch import Evaluation
from trainers.config import Config

Stage = Literal["sft", "reward_model", "ppo"]
FinalStatus = Literal["finished", "converged", "failed", "interrupted"]
Evaluations = Sequence[tuple[int, Sequence[Evaluation]]]
# The x axis of each stage; it stands in every record.
STEP_KEYS: Mapping[Stage, str] = {
    "sft": "sft/step",
    "reward_model": "reward_model/step",
    "ppo": "train/global_step",
}


@final
@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a logger knows of a run when it starts.

    Attributes:
        config: settings.
        folder: the run folder.
        state: the logger's `state_dict` in the checkpoint that is resumed; empty without one.
        evaluations: those of earlier attempts by iteration, which were logged then.
    """

    config: Config
    folder: Path
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    evaluations: Evaluations = ()


class Logger(ABC):
    """Takes figures, samples and evaluations of one run.

    A logger of its own defines `log` and `close`. The rest does nothing, or what `log` does.
    """

    def start(self, run: RunInfo) -> None:  # noqa: B027 - most have nothing to open
        """Open the log of a run."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int, section: Stage = "ppo") -> None:
        """Take the figures of one iteration of PPO, or of one optimizer step before it."""

    def samples(  # noqa: B027
        self, rows: Sequence[Mapping[str, Any]], step: int
    ) -> None:
        """Take a few sampled responses: env, prompt, completion, reward, its parts, and more."""

    def evaluation(
        self, evaluations: Sequence[Evaluation], step: int, figures: Mapping[str, float]
    ) -> None:
        """Take held-out scores, and how they stand to those before; step 0 is before PPO.

        By default they are logged as figures of this step.
        """
        self.log({**evaluation_values(evaluations), **figures}, step)

    def note(self, title: str, text: str) -> None:  # noqa: B027
        """Take a line that says what the run consists of, such as the model's size."""

    @abstractmethod
    def close(self, status: FinalStatus) -> None:
        """Finish the log; nothing is logged afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps so that the log continues."""
        return {}


def evaluation_values(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return the figures of held-out scores by metric key; without an interval that is unknown."""
    values: dict[str, float] = {}
    for evaluation in evaluations:
        values[f"eval/{evaluation.env}/mean"] = evaluation.mean
        if not math.isnan(evaluation.ci_low):
            values[f"eval/{evaluation.env}/ci_low"] = evaluation.ci_low
            values[f"eval/{evaluation.env}/ci_high"] = evaluation.ci_high
    if evaluations:
        values["eval/score"] = sum(evaluation.mean for evaluation in evaluations) / len(evaluations)
    return values
