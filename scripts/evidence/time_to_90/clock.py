"""What the workers share: their job, a clock that can be stopped, and the end of a run.

Only the standard library is imported here: each environment of `scripts/bench/requirements` reads
this file.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROLLOUTS, SECONDS, GOAL = 120, 300.0, 0.9
EVERY = 3
"""Rollouts between two evaluations."""
RESPONSE_TOKENS = 8


class Job:
    """A worker's job: what it is given, and the scores by CPU seconds it has written so far.

    Attributes:
        settings: the JSON of the first argument.
    """

    def __init__(self) -> None:
        """Read the first argument."""
        self.settings: dict[str, Any] = json.loads(sys.argv[1])
        self._points: list[dict[str, float]] = []
        self._began = self._stopped = 0.0

    def sums(self, split: str) -> list[dict[str, str]]:
        """Return the prompts and answers of `train` or `test`."""
        return json.loads(Path(self.settings[split]).read_text(encoding="utf-8"))

    def start(self) -> None:
        """Start the clock: models are built, nothing was generated."""
        self._began, self._stopped = time.process_time(), 0.0

    def leave_out(self, seconds: float) -> None:
        """Count CPU seconds of an evaluation out of those of the run."""
        self._stopped += seconds

    def judge(self, rollouts: int, score: Callable[[], float]) -> None:
        """Judge the model with the clock stopped, and end the process where the run has ended."""
        before = time.process_time()
        spent = before - self._began - self._stopped
        point = {"rollouts": rollouts, "cpu_seconds": spent, "score": score()}
        self._points.append(point)
        print(json.dumps(point), flush=True)
        self._stopped += time.process_time() - before
        if point["score"] >= GOAL or rollouts >= ROLLOUTS or spent >= SECONDS:
            Path(self.settings["out"]).write_text(json.dumps(self._points), encoding="utf-8")
            os._exit(0)  # past what a library does at the end of training


def is_right(completion: str, answer: str) -> bool:
    """Tell whether a completion is the right number and nothing else."""
    return completion.strip() == answer
