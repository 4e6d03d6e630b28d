"""What PPO is compared with: searchers on the same problem, each paying for every plan it tries.

    uniform     one level for all, then levels are raised in depth order while the budget lasts
    shortgpt    drops the layers that change their input least (Men et al. 2024, arXiv:2403.03853)
    sleb        drops the layer that costs least quality, again and again (Song et al. 2024,
                arXiv:2402.09025)
    greedy      lowers the unit of the least loss per cost saved, again and again
    additive    the best plan by the sum of sensitivities, by dynamic programming
    random      random plans within the budget
    evolution   (1 + lambda): a few decisions of the best plan change, the best child replaces it

Uniform with magnitude or Wanda weights is `uniform` on an `evaluate` of that method. A plan is one
action per decision [U]; budgets are [M], infinite where there is none.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import final

import numpy as np

from llmgym.compression.budget import BudgetMask, nearest
from llmgym.compression.optimum import Fronts
from llmgym.compression.table import PlanTable

CHILDREN = 8
"""lambda of the evolution."""
STALE = 20
"""Rounds without a plan that is new, after which a search of a small problem ends."""
CHANGES = 3
"""Decisions that a child changes, at most."""


class OutOfEvaluationsError(RuntimeError):
    """Raised inside a searcher whose evaluations are spent; the search ends with what it has."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a searcher ended with.

    Attributes:
        plan: [U], the best one tried; None where none was.
        kl: of it, on *selection*.
        evaluations: paid for, those before the search too.
        seconds: wall clock.
    """

    plan: np.ndarray | None
    kl: float
    evaluations: int
    seconds: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is searched.

    Attributes:
        table: of the problem.
        evaluate: KL [N] of plans [N, U].
        layers: the decisions of each layer.
        influences: 1 - cos of each layer.
    """

    table: PlanTable
    evaluate: Callable[[np.ndarray], np.ndarray]
    layers: Sequence[Sequence[int]]
    influences: Sequence[float]


@final
class Search:
    """One searcher's view of a problem: it pays for each plan once, up to a limit.

    Args:
        subject: what is searched.
        budget: [M], infinite where there is none.
        limit: evaluations it may pay for.
        paid: evaluations that are paid for before, as those of sensitivities.
        seed: of its randomness.
    """

    def __init__(
        self,
        subject: Subject,
        budget: np.ndarray,
        *,
        limit: int,
        paid: int = 0,
        seed: int = 0,
    ) -> None:
        self.table = table = subject.table
        self.layers, self.influences = subject.layers, subject.influences
        self.budget = budget
        self.evaluations = paid
        self.rng = np.random.default_rng(seed)
        self.kinds = tuple(np.array(table.cost_names)[np.isfinite(budget)])
        self.mask = BudgetMask(table, self.kinds)
        self.limit = limit
        self.best: tuple[float, tuple[int, ...]] | None = None
        self._evaluate = subject.evaluate
        self._known: dict[tuple[int, ...], float] = {}

    def kl(self, plan: np.ndarray) -> float:
        """Return the KL of a plan [U]; one within the budget may become the best.

        Raises:
            OutOfEvaluationsError: the limit is reached.
        """
        key = tuple(map(int, plan))
        if key not in self._known:
            if self.evaluations >= self.limit:
                raise OutOfEvaluationsError
            self.evaluations += 1
            self._known[key] = float(self._evaluate(plan[None])[0])
        kl = self._known[key]
        if self.within(plan) and (self.best is None or kl < self.best[0]):
            self.best = (kl, key)
        return kl

    def within(self, plan: np.ndarray) -> bool:
        """Tell whether a plan [U] is within the budget."""
        return bool((self.table.cost(plan) <= self.budget * (1 + 1e-9)).all())

    def share(self, plan: np.ndarray) -> float:
        """Return the largest share of a budget that a plan [U] costs."""
        return float((self.table.cost(plan) / self.budget).max())

    def ladder(self, plan: np.ndarray, step: int) -> list[int]:
        """Return the actions that a decision of a plan [U] has, cheapest first."""
        context = self.table.context(plan)
        there = np.flatnonzero(self.table.available[context, step])
        costs = (self.table.costs[context, step, there] / self.budget).max(-1)
        return there[np.argsort(costs, kind="stable")].tolist()

    def moved(self, plan: np.ndarray, step: int, by: int) -> np.ndarray | None:
        """Return a plan [U] with one decision `by` rungs dearer; None where there is no rung."""
        ladder = self.ladder(plan, step)
        at = ladder.index(int(plan[step])) + by
        if not 0 <= at < len(ladder):
            return None
        moved = plan.copy()
        moved[step] = ladder[at]
        return moved

    def keeps(self, plan: np.ndarray) -> bool:
        """Tell whether a plan [U] keeps something."""
        depth = len(self.table.global_actions)
        steps = np.arange(depth, len(plan))
        return not self.table.drops[steps, plan[depth:]].all()

    def filled(self, plan: np.ndarray) -> np.ndarray:
        """Return a plan [U] raised in depth order while the budget lasts."""
        for step in range(len(self.table.global_actions), len(plan)):
            while (dearer := self.moved(plan, step, 1)) is not None and self.within(dearer):
                plan = dearer
        return plan

    def repaired(self, plan: np.ndarray) -> np.ndarray:
        """Return the plan [U] of the nearest allowed actions, in order."""
        made: list[int] = []
        limits = self.budget[self.mask.columns]
        for action in plan:
            allowed = self.mask.allowed(np.array(made, dtype=np.int64), limits)
            made.append(nearest(int(action), allowed))
        return np.array(made)

    def dense(self) -> np.ndarray:
        """Return the plan [U] of the dearest actions."""
        depth = len(self.table.global_actions)
        plan = np.zeros(len(self.table.decisions), dtype=np.int64)
        plan[:depth] = np.array(self.table.global_actions, dtype=np.int64) - 1
        for step in range(depth, len(plan)):
            plan[step] = self.ladder(plan, step)[-1]
        return plan


Searcher = Callable[[Search], None]


def uniform(search: Search) -> None:
    """Try the dearest plan of one level, raised to the budget."""
    table, depth = search.table, len(search.table.global_actions)
    plans: list[np.ndarray] = []
    if depth:
        for context in np.ndindex(table.global_actions):
            plan = search.dense()
            plan[:depth] = context
            plans.append(plan)
    else:
        for level in range(len(table.action_names)):
            plan = search.dense()
            for step in range(len(plan)):
                below = [a for a in search.ladder(plan, step) if a <= level]
                plan[step] = below[-1]
            plans.append(plan)
    plans = [plan for plan in plans if search.within(plan) and search.keeps(plan)]
    if plans:
        search.kl(search.filled(max(plans, key=search.share)))


def dropped(search: Search, plan: np.ndarray, layer: int) -> np.ndarray:
    """Return a plan [U] without a layer."""
    plan = plan.copy()
    for step in search.layers[layer]:
        plan[step] = np.flatnonzero(search.table.drops[step])[0]
    return plan


def shortgpt(search: Search) -> None:
    """Drop the layers of the least influence until the budget is met."""
    plan = search.dense()
    for layer in np.argsort(search.influences, kind="stable"):
        if search.within(plan):
            break
        without = dropped(search, plan, int(layer))
        if search.keeps(without):
            plan = without
    if search.within(plan):
        search.kl(search.filled(plan))


def sleb(search: Search) -> None:
    """Drop the layer that costs least quality, scored anew each time, until the budget is met."""
    plan, left = search.dense(), set(range(len(search.layers)))
    while not search.within(plan) and len(left) > 1:
        scored = [(search.kl(dropped(search, plan, layer)), layer) for layer in sorted(left)]
        _, layer = min(scored)
        plan = dropped(search, plan, layer)
        left.remove(layer)
    if search.within(plan):
        search.kl(search.filled(plan))


def greedy(search: Search) -> None:
    """Lower the decision of the least loss per cost saved until the budget is met."""
    plan, kl = search.dense(), 0.0
    depth = len(search.table.global_actions)
    while not search.within(plan):
        options: list[tuple[float, float, np.ndarray]] = []
        for step in range(depth, len(plan)):
            cheaper = search.moved(plan, step, -1)
            if cheaper is None or not search.keeps(cheaper):
                continue
            saved = search.share(plan) - search.share(cheaper)
            candidate = search.kl(cheaper)
            options.append(((candidate - kl) / max(saved, 1e-12), candidate, cheaper))
        if not options:
            return
        _, kl, plan = min(options, key=lambda option: option[:2])
    search.kl(search.filled(plan))


def additive(search: Search) -> None:
    """Try the best plan by the sum of sensitivities."""
    plan = Fronts(search.table).best(search.budget)
    if plan is not None:
        search.kl(plan)


def drawn(search: Search) -> np.ndarray:
    """Return a random plan [U] within the budget."""
    made: list[int] = []
    for _ in search.table.decisions:
        allowed = search.mask.allowed(
            np.array(made, dtype=np.int64), search.budget[search.mask.columns]
        )
        made.append(int(search.rng.choice(np.flatnonzero(allowed))))
    return np.array(made)


def random_plans(search: Search) -> None:
    """Try random plans, each raised to the budget, until evaluations are spent."""
    stale = 0
    while stale < STALE:  # a small problem has fewer plans than evaluations
        before = search.evaluations
        search.kl(search.filled(drawn(search)))
        stale = 0 if search.evaluations > before else stale + 1


def mutated(search: Search, plan: np.ndarray) -> np.ndarray:
    """Return a plan [U] with one to three decisions changed, within the budget and raised to it."""
    changed = plan.copy()
    count = int(search.rng.integers(1, CHANGES + 1))
    for step in search.rng.choice(len(plan), min(count, len(plan)), replace=False):
        changed[step] = int(search.rng.integers(len(search.table.action_names)))
    repaired = search.repaired(changed)
    order = search.rng.permutation(np.arange(len(search.table.global_actions), len(plan)))
    for step in order:
        while (dearer := search.moved(repaired, int(step), 1)) is not None and search.within(
            dearer
        ):
            repaired = dearer
    return repaired


def evolved(search: Search, plan: np.ndarray) -> None:
    """Run the evolution from a plan [U] until evaluations are spent."""
    kl = search.kl(plan)
    stale = 0
    while stale < STALE:
        before = search.evaluations
        children = [mutated(search, plan) for _ in range(CHILDREN)]
        scored = [(search.kl(made), number) for number, made in enumerate(children)]
        best, number = min(scored)
        if best <= kl:
            kl, plan = best, children[number]
        stale = 0 if search.evaluations > before else stale + 1


def evolution(search: Search) -> None:
    """Run the evolution from a random plan."""
    evolved(search, search.filled(drawn(search)))


def evolution_from_additive(search: Search) -> None:
    """Run the evolution from the best additive plan."""
    plan = Fronts(search.table).best(search.budget)
    if plan is not None:
        evolved(search, plan)


SEARCHERS: dict[str, Searcher] = {
    "uniform": uniform,
    "shortgpt": shortgpt,
    "sleb": sleb,
    "greedy": greedy,
    "additive": additive,
    "random": random_plans,
    "evolution": evolution,
    "evolution from additive": evolution_from_additive,
}
"""By the name that tables have."""
NEEDS_SENSITIVITIES = frozenset(("additive", "evolution from additive"))
"""Those that pay for the sensitivities of the table before they begin."""


def run_search(searcher: Searcher, search: Search) -> SearchResult:
    """Run a searcher to its end or that of its evaluations."""
    began = time.perf_counter()
    with suppress(OutOfEvaluationsError):
        searcher(search)
    kl, plan = search.best or (float("inf"), None)
    return SearchResult(
        plan=None if plan is None else np.array(plan),
        kl=kl,
        evaluations=search.evaluations,
        seconds=time.perf_counter() - began,
    )
