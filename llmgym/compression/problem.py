"""A problem of compression: its table, the quality of plans, and a file that holds it.

Shapes: U decisions, M kinds of cost, N plans.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np

from llmgym.compression.optimum import Fronts
from llmgym.compression.table import PlanTable
from llmgym.errors import TaskSourceError

ARRAYS = ("costs", "constant", "dense", "drops", "predicted", "features")
NAMES = ("name", "decisions", "global_actions", "cost_names", "feature_names", "action_names")


class Problem(Protocol):
    """What the environment and every searcher see."""

    @property
    def table(self) -> PlanTable:
        """What is known before a plan is tried."""
        ...

    def evaluate(self, choices: np.ndarray) -> np.ndarray:
        """Return the KL [N] to the dense model, in nats per token, of plans [N, U]."""
        ...

    def seed(self, budget: np.ndarray) -> np.ndarray | None:
        """Return a good plan [U] that costs at most `budget` [M], infinite where none is set."""
        ...


@final
class TableProblem:
    """A problem whose KL is exactly the sum of its table; it needs no model.

    Args:
        table: the problem.
        seeds: whether the best additive plan is offered as a seed.
    """

    def __init__(self, table: PlanTable, *, seeds: bool = True) -> None:
        self._table = table
        self._seeds = seeds

    @property
    def table(self) -> PlanTable:
        """What is known before a plan is tried."""
        return self._table

    @cached_property
    def fronts(self) -> Fronts:
        """The best additive plans of every budget."""
        return Fronts(self._table)

    def evaluate(self, choices: np.ndarray) -> np.ndarray:
        """Return the sums [N] of plans [N, U]."""
        return np.array([self._table.prediction(plan) for plan in choices])

    def seed(self, budget: np.ndarray) -> np.ndarray | None:
        """Return the best additive plan [U] within `budget` [M]."""
        return self.fronts.best(budget) if self._seeds else None


def write_problem(path: Path, table: PlanTable) -> None:
    """Write a table as a file of arrays with a header of names."""
    header = json.dumps({name: getattr(table, name) for name in NAMES})
    arrays: Mapping[str, Any] = {name: getattr(table, name) for name in ARRAYS}
    np.savez_compressed(path, header=np.array(header), **arrays)


def read_problem(path: str | Path) -> PlanTable:
    """Read what `write_problem` wrote.

    Raises:
        TaskSourceError: there is no such file, or it is none of a problem.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in ARRAYS}
    except (OSError, KeyError, ValueError) as error:
        raise TaskSourceError(
            f"{path} is no problem file: {error}. `write_problem` of llmgym.compression.problem "
            "writes one."
        ) from error
    names = {
        name: value if isinstance(value, str) else tuple(value) for name, value in header.items()
    }
    return PlanTable(**names, **arrays)
