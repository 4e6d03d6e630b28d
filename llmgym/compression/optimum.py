"""The best additive plan of every budget, by one pass of dynamic programming.

States are the plans of a prefix that no other of the same prefix beats in cost and in prediction.
Above `MAX_STATES` they are thinned by cost, so that the result is exact for small problems and
within a fraction of a thousandth of a budget for large ones. At least one decision keeps something.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from llmgym.compression.table import PlanTable

MAX_STATES = 8192
NOTHING_KEPT = -1
"""The parent of a state before which everything was dropped."""


@dataclass(frozen=True, slots=True)
class Front:
    """The plans of one context, cheapest first; each is better than all cheaper ones.

    Attributes:
        costs: [S] without what every plan costs.
        predictions: [S] falling.
        parents: per decision, the state [S'] before the action.
        actions: per decision, the action [S'].
        drops: [U] the action that drops each decision, -1 where there is none.
    """

    costs: np.ndarray
    predictions: np.ndarray
    parents: list[np.ndarray]
    actions: list[np.ndarray]
    drops: np.ndarray

    def plan(self, state: int) -> np.ndarray:
        """Return the plan [U] of a state, without global decisions."""
        choices = self.drops.copy()
        for step in reversed(range(len(self.actions))):
            if state == NOTHING_KEPT:
                break
            choices[step] = self.actions[step][state]
            state = int(self.parents[step][state])
        return choices


def unbeaten(costs: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return the numbers of the states [N] that no other beats, cheapest first, thinned."""
    order = np.lexsort((predictions, costs))
    falling = predictions[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], falling[:-1]]))
    front = order[falling < best_before]
    if len(front) <= MAX_STATES:
        return front
    spread = costs[front] - costs[front[0]]
    cells = np.floor(spread / max(float(spread[-1]), 1e-300) * (MAX_STATES - 2)).astype(np.int64)
    last = np.append(cells[1:] != cells[:-1], True)  # the best of each cell, and the cheapest
    last[0] = True
    return front[last]


class Prefix(NamedTuple):
    """The states of a beginning of a plan.

    Attributes:
        costs: [S].
        predictions: [S].
        dropped: (cost, prediction) of the beginning that keeps nothing; None if there is none.
    """

    costs: np.ndarray
    predictions: np.ndarray
    dropped: tuple[float, float] | None


class Grown(NamedTuple):
    """One decision more: the states after it, and where each comes from."""

    prefix: Prefix
    parents: np.ndarray
    actions: np.ndarray
    drop: int


def grown(prefix: Prefix, costs: np.ndarray, predicted: np.ndarray, drops: np.ndarray) -> Grown:
    """Return a beginning with one decision more, of costs, predictions and drops [K]."""
    there = np.flatnonzero(np.isfinite(costs))
    count = len(prefix.costs)
    parents, actions = np.repeat(np.arange(count), len(there)), np.tile(there, count)
    before = np.stack([prefix.costs, prefix.predictions])[:, parents]
    if prefix.dropped is not None:
        keeping = there[~drops[there]]
        parents = np.append(parents, np.full(len(keeping), NOTHING_KEPT))
        actions = np.append(actions, keeping)
        first = np.repeat(np.array(prefix.dropped)[:, None], len(keeping), 1)
        before = np.concatenate([before, first], 1)
    after = before + np.stack([costs, predicted])[:, actions]
    kept = unbeaten(*after)
    drop, dropped = -1, None
    gone = there[drops[there]]
    if len(gone):
        drop = int(gone[np.argmin(costs[gone])])
        if prefix.dropped is not None:
            dropped = (prefix.dropped[0] + costs[drop], prefix.dropped[1] + predicted[drop])
    states = Prefix(after[0, kept], after[1, kept], dropped)
    return Grown(states, parents[kept], actions[kept], drop)


def additive_front(costs: np.ndarray, predicted: np.ndarray, drops: np.ndarray) -> Front:
    """Return the front of decisions with costs [U, K], predictions [U, K] and drops [U, K]."""
    prefix = Prefix(np.empty(0), np.empty(0), (0.0, 0.0))
    steps: list[Grown] = []
    for row in zip(costs, predicted, drops, strict=True):
        steps.append(grown(prefix, *row))
        prefix = steps[-1].prefix
    return Front(
        prefix.costs,
        prefix.predictions,
        [step.parents for step in steps],
        [step.actions for step in steps],
        np.array([step.drop for step in steps], dtype=np.int64),
    )


@final
class Fronts:
    """The fronts of all contexts of a problem, one kind of cost at a time.

    Args:
        table: the problem.
    """

    def __init__(self, table: PlanTable) -> None:
        self._table = table
        self._made: dict[int, list[Front]] = {}

    def fronts(self, kind: int) -> list[Front]:
        """Return the front of each context for one kind of cost."""
        table, depth = self._table, len(self._table.global_actions)
        if kind not in self._made:
            costs = np.where(table.available, table.costs[..., kind], np.inf)
            self._made[kind] = [
                additive_front(costs[c, depth:], table.predicted[c, depth:], table.drops[depth:])
                for c in range(len(costs))
            ]
        return self._made[kind]

    def plan(self, context: int, front: Front, state: int) -> np.ndarray:
        """Return the complete plan [U] of a state of a context's front."""
        globals_ = np.unravel_index(context, self._table.global_actions or (1,))
        depth = len(self._table.global_actions)
        return np.array([*map(int, globals_[:depth]), *front.plan(state)], dtype=np.int64)

    def best(self, budget: np.ndarray) -> np.ndarray | None:
        """Return the plan [U] of the lowest prediction within `budget` [M]; None if none is.

        Under several budgets it is the best of those that are optimal under one of them alone and
        within all: a lower bound of what is possible, exact under one.
        """
        best, best_value = None, np.inf
        for kind in np.flatnonzero(np.isfinite(budget)):
            for context, front in enumerate(self.fronts(int(kind))):
                room = budget[kind] - self._table.constant[kind]
                state = int(np.searchsorted(front.costs, room * (1 + 1e-12), side="right")) - 1
                while state >= 0 and front.predictions[state] < best_value:
                    plan = self.plan(context, front, state)
                    if (self._table.cost(plan) <= budget * (1 + 1e-9)).all():
                        best, best_value = plan, float(front.predictions[state])
                    state -= 1
        return best
