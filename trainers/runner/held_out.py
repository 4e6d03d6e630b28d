"""Held-out scores of a run: the best one, and whether anything still gets better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, final

from trainers.batch import Evaluation
from trainers.config import EvalConfig
from trainers.distributed.collectives import broadcast


@final
class HeldOut:
    """The evaluations so far, and what follows from them; the same on every rank.

    Attributes:
        evaluations: (iteration, scores) in order; scores and rows of single tasks are kept of the
            first and the newest.
        best: score of the model in best/.
        best_step: the iteration it was evaluated at.
        stale: evaluations in a row without improvement.
    """

    def __init__(self, config: EvalConfig) -> None:
        """Begin with none."""
        self._config = config
        self.evaluations: list[tuple[int, list[Evaluation]]] = []
        self.best, self.best_step = -math.inf, 0
        self.stale = 0
        self._score = self._improved = -math.inf

    @property
    def is_best(self) -> bool:
        """True where the newest score is higher than that of best/."""
        return self._score > self.best

    @property
    def has_converged(self) -> bool:
        """True after `eval.patience` evaluations in a row without improvement."""
        patience = self._config.patience
        return patience is not None and self.stale >= patience

    def take(self, evaluations: Sequence[Evaluation], step: int) -> None:
        """Take the scores of an iteration; rank 0's mean decides for all."""
        if len(self.evaluations) > 1:
            before, done = self.evaluations[-1]
            self.evaluations[-1] = (
                before,
                [replace(evaluation, scores=(), rows=()) for evaluation in done],
            )
        self.evaluations.append((step, list(evaluations)))
        self._score = broadcast(
            sum(evaluation.mean for evaluation in evaluations) / len(evaluations)
        )
        if self._score > self._improved + self._config.min_delta:
            self._improved, self.stale = self._score, 0
        else:
            self.stale += 1

    def keep(self) -> None:
        """Note that best/ is now the model of the newest score."""
        self.best, self.best_step = self._score, self.evaluations[-1][0]

    def figures(self) -> dict[str, float]:
        """Return the best score so far and for how long none was better, by metric key."""
        return {"eval/best": max(self.best, self._score), "eval/stale": float(self.stale)}

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "evaluations": [[step, [asdict(e) for e in done]] for step, done in self.evaluations],
            "best": self.best,
            "best_step": self.best_step,
            "stale": self.stale,
            "score": self._score,
            "improved": self._improved,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.evaluations = [
            (int(step), [_evaluation(fields) for fields in done])
            for step, done in state["evaluations"]
        ]
        self.best, self.best_step = float(state["best"]), int(state["best_step"])
        self.stale = int(state["stale"])
        self._score, self._improved = float(state["score"]), float(state["improved"])


def _evaluation(saved: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**{**saved, "scores": tuple(saved["scores"]), "rows": tuple(saved["rows"])})
