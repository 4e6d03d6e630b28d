"""Which actions keep a plan within its budgets: a mask, not a penalty.

    (step, action) is allowed  iff  spent + cost(action) + least cost of what remains <= budget

A decision whose cheapest action is not the same for every budget could leave none allowed, so it is
refused. Something must stay of the model: until something is kept, what remains includes the
cheapest way to keep the last decision; a context without room for that is left out. Shapes as in
`table.py`.
"""

from typing import final

import numpy as np

from llmgym.compression.table import PlanTable
from llmgym.errors import TaskSourceError

SLACK = 1e-12
"""Relative, for sums that round otherwise in another order."""


@final
class BudgetMask:
    """The masks of a problem under some of its costs.

    Args:
        table: the problem.
        kinds: names of the costs that have a budget.

    Attributes:
        columns: their numbers.

    Raises:
        TaskSourceError: a cost that the problem has not, or a decision without one cheapest action.
    """

    def __init__(self, table: PlanTable, kinds: tuple[str, ...]) -> None:
        unknown = [kind for kind in kinds if kind not in table.cost_names]
        if unknown or not kinds:
            raise TaskSourceError(
                f"budgets must be of {', '.join(table.cost_names)}; got {', '.join(kinds) or '()'}"
            )
        self.columns = [table.cost_names.index(kind) for kind in kinds]
        self._table = table
        self._depth = len(table.global_actions)
        self._costs = np.where(table.available[..., None], table.costs[..., self.columns], np.inf)
        self._constant = table.constant[self.columns]
        self._least_rest = self._suffixes()
        self._keeping = self._last_kept()
        self.least = self._constant + self._least_rest[:, self._depth] + self._keeping

    def _cheapest(self, costs: np.ndarray, step: int) -> np.ndarray:
        """Return the least costs [m] of actions [K, m], all of one action."""
        least = costs.min(0)
        if not (costs <= least * (1 + SLACK)).all(1).any():
            raise TaskSourceError(
                f"{self._table.decisions[step]} has no action that is cheapest in every budget, so "
                "that a plan could end where nothing is allowed. Set fewer budgets."
            )
        return least

    def _suffixes(self) -> np.ndarray:
        contexts, steps, _, kinds = self._costs.shape
        rest = np.zeros((contexts, steps + 1, kinds))
        for context in range(contexts):
            for step in reversed(range(self._depth, steps)):
                least = self._cheapest(self._costs[context, step], step)
                rest[context, step] = rest[context, step + 1] + least
        return rest

    def _last_kept(self) -> np.ndarray:
        """Return what keeping the last decision costs beyond its cheapest action, [C, m]."""
        last, kept = len(self._table.decisions) - 1, ~self._table.drops[-1]
        extra = [
            self._cheapest(costs[last, kept], last) - costs[last].min(0) for costs in self._costs
        ]
        return np.array(extra)

    def feasible(self, budget: np.ndarray) -> bool:
        """Tell whether some plan is within a budget [m]."""
        return bool((self.least <= budget * (1 + SLACK)).all(1).any())

    def spent(self, choices: np.ndarray) -> np.ndarray:
        """Return what a beginning of a plan [u] costs, with what every plan costs, [m]."""
        if len(choices) <= self._depth:
            return self._constant.copy()
        steps = np.arange(len(choices))
        context = self._table.context(choices)
        return self._constant + self._costs[context, steps, choices].sum(0)

    def remaining(self, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the largest cost [m] of what remains after a beginning [u].

        Before all global decisions are taken they are those of all contexts that are left.
        """
        contexts = self._contexts(choices)
        step = max(len(choices), self._depth)
        finite = np.where(np.isfinite(self._costs), self._costs, -np.inf)
        most = finite[contexts, step:].max(2).sum(1)
        return self._least_rest[contexts, step].min(0), most.max(0)

    def allowed(self, choices: np.ndarray, budget: np.ndarray) -> np.ndarray:
        """Return [K] True on what may follow a beginning of a plan [u] under a budget [m]."""
        step = len(choices)
        limit = budget * (1 + SLACK)
        if step < self._depth:
            fits = np.asarray((self.least <= limit).all(1))
            allowed = np.zeros(len(self._table.action_names), dtype=bool)
            for action in range(self._table.global_actions[step]):
                allowed[action] = fits[self._contexts(np.append(choices, action))].any()
            return allowed
        context = self._table.context(choices)
        begun = np.arange(self._depth, step)
        kept = bool((~self._table.drops[begun, choices[self._depth :]]).any())
        after = self.spent(choices) + self._costs[context, step]
        rest = self._least_rest[context, step + 1] + np.zeros_like(after)
        if not kept:
            last = step == len(self._table.decisions) - 1
            rest[self._table.drops[step]] += np.inf if last else self._keeping[context]
        return (after + rest <= limit).all(-1)

    def _contexts(self, choices: np.ndarray) -> np.ndarray:
        """Return the contexts that a beginning of a plan [u] leaves open."""
        sizes = self._table.global_actions
        numbers = np.arange(len(self._costs)).reshape(sizes or (1,))
        return numbers[tuple(map(int, choices[: self._depth]))].reshape(-1)


def nearest(action: int, allowed: np.ndarray) -> int:
    """Return the allowed action [K] nearest to another; of two as near, the lower."""
    numbers = np.flatnonzero(allowed)
    return int(numbers[np.argmin(abs(numbers - action))])
