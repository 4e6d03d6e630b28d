"""A real model as a problem of `llmgym/Compression-v0`: its table, and the KL of every plan tried.

U decisions, K actions, M kinds of cost, C contexts, N plans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, final

import numpy as np

from llmgym.compression.optimum import Fronts
from llmgym.compression.table import PlanTable
from trainers.compress.costs import CostModel
from trainers.compress.database import EVALUATION_TOKENS, Database
from trainers.compress.features import mean_features, unit_features
from trainers.compress.spaces import Space
from trainers.compress.units import KINDS, Choice, Geometry, SizePlan, Unit, dense_plan


def contexts(space: Space) -> list[tuple[int, ...]]:
    """Return the actions of the global decisions in every context."""
    return [tuple(map(int, index)) for index in np.ndindex(space.global_actions)]


def units_of(space: Space, decision: int) -> list[Unit]:
    """Return the units of a decision, counted behind the global ones."""
    if space.global_actions:
        return [Unit(decision, kind) for kind in KINDS]
    return [Unit(decision // 2, KINDS[decision % 2])]


class Sensitivities:
    """The KL of changes to a few units alone, all others dense; each is evaluated once.

    Args:
        database: evaluates.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._geometry = database.variants.geometry

    def alone(self, units: Sequence[Unit], choices: Sequence[Choice]) -> float:
        """Return the KL of some units' choices, in nats."""
        changed = list(self._database.dense.choices)
        for unit, choice in zip(units, choices, strict=True):
            changed[2 * unit.layer + KINDS.index(unit.kind)] = choice
        return self._database.evaluate([SizePlan(tuple(changed))])[0]

    def summed(self, units: Sequence[Unit], choices: Sequence[Choice]) -> float:
        """Return the KL of a decision: of a dropped layer together, else summed over its units."""
        if not any(choice.size for choice in choices):
            return self.alone(units, choices)
        pairs = zip(units, choices, strict=True)
        return sum(self.alone([unit], [choice]) for unit, choice in pairs)


class Costs(NamedTuple):
    """What the actions of a space cost.

    Attributes:
        costs: [C, U, K, M], infinite where there is no such action.
        drops: [U, K] True where an action removes all of what it decides on.
    """

    costs: np.ndarray
    drops: np.ndarray


def costs_of(space: Space, costs: CostModel) -> Costs:
    """Return the costs of every action in every context; no model is needed."""
    depth, actions = len(space.global_actions), len(space.action_names)
    shape = (len(contexts(space)), len(space.decisions), actions)
    cost = np.full((*shape, len(costs.names)), np.inf)
    drops = np.zeros(shape[1:], dtype=bool)
    for step, count in enumerate(space.global_actions):
        cost[:, step, :count] = 0.0
    for number, context in enumerate(contexts(space)):
        for step in range(depth, shape[1]):
            units = units_of(space, step - depth)
            for action, choices in enumerate(space.options(step - depth, context)):
                if choices is None:
                    continue
                pairs = zip(units, choices, strict=True)
                cost[number, step, action] = sum(
                    costs.unit(unit.kind, choice) for unit, choice in pairs
                )
                drops[step, action] = not any(choice.size for choice in choices)
    return Costs(cost, drops)


def cost_table(space: Space, costs: CostModel, name: str) -> PlanTable:
    """Return a table of costs alone: it tells which budgets a plan can meet.

    Args:
        space: the decisions.
        costs: of units.
        name: of the problem.
    """
    cost, drops = costs_of(space, costs)
    return PlanTable(
        name=name,
        decisions=space.decisions,
        global_actions=space.global_actions,
        action_names=space.action_names,
        cost_names=costs.names,
        costs=cost,
        constant=costs.constant,
        dense=costs.plan(dense_plan(costs.geometry)),
        drops=drops,
        predicted=np.zeros(cost.shape[:-1]),
        feature_names=(),
        features=np.zeros((len(space.decisions), 0)),
    )


def num_sensitivities(space: Space, geometry: Geometry) -> int:
    """Return how many evaluations `table_of` pays for: changes of one decision, each once."""
    dense = dense_plan(geometry)
    changes: set[tuple[tuple[Unit, ...], tuple[Choice, ...]]] = set()
    depth = len(space.global_actions)
    for context in contexts(space):
        for decision in range(len(space.decisions) - depth):
            units = tuple(units_of(space, decision))
            for choices in space.options(decision, context):
                if choices is None:
                    continue
                parts = [(units, choices)]
                if any(choice.size for choice in choices):
                    parts = [((u,), (c,)) for u, c in zip(units, choices, strict=True)]
                changes |= {
                    part
                    for part in parts
                    if any(dense.of(u) != c for u, c in zip(*part, strict=True))
                }
    return len(changes)


def table_of(database: Database, space: Space, costs: CostModel, name: str) -> PlanTable:
    """Measure the table of a model: costs, features and the KL of every unit's choices alone.

    Args:
        database: evaluates; its counter pays for every sensitivity.
        space: the decisions.
        costs: of units.
        name: of the problem.
    """
    table = cost_table(space, costs, name)
    depth = len(space.global_actions)
    predicted = np.zeros(table.costs.shape[:-1])
    sensitivities = Sensitivities(database)
    for number, context in enumerate(contexts(space)):
        for step in range(depth, len(space.decisions)):
            units = units_of(space, step - depth)
            for action, choices in enumerate(space.options(step - depth, context)):
                if choices is not None:
                    predicted[number, step, action] = sensitivities.summed(units, choices)
    names, features = features_of(database, space, costs, predicted)
    return replace(table, predicted=predicted, feature_names=names, features=features)


def features_of(
    database: Database, space: Space, costs: CostModel, predicted: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names [F] and features [U, F], with the mean sensitivity of every action.

    Args:
        database: of the dense model.
        space: the decisions.
        costs: of units.
        predicted: [C, U, K] in nats.
    """
    influences = database.block_influences()
    depth = len(space.global_actions)
    rows: list[dict[str, float]] = []
    for step in range(depth, len(space.decisions)):
        units = units_of(space, step - depth)
        by_unit = [unit_features(database, unit, costs, influences[unit.layer]) for unit in units]
        rows.append(mean_features(by_unit))
    over_all = mean_features(rows)
    rows = [over_all] * depth + rows
    kls = np.log1p(np.maximum(predicted, 0)).mean(0)
    named: list[Mapping[str, Any]] = [
        {
            **row,
            **{f"is_global_{number}": float(step == number) for number in range(2)},
            **{f"kl_{action}": float(kl) for action, kl in enumerate(kls[step])},
        }
        for step, row in enumerate(rows)
    ]
    names = tuple(named[0])
    return names, np.array([[row[name] for name in names] for row in named])


@final
class ModelProblem:
    """Plans of a model, scored by the model.

    Args:
        database: evaluates.
        space: the decisions.
        table: of both.
        tokens: of one evaluation.
        seeds: whether the best additive plan is offered as a seed.

    Attributes:
        tried: the KL of every plan evaluated, by its choices.
    """

    def __init__(
        self,
        database: Database,
        space: Space,
        table: PlanTable,
        *,
        tokens: int = EVALUATION_TOKENS,
        seeds: bool = True,
    ) -> None:
        self.database = database
        self.space = space
        self._table = table
        self._tokens = tokens
        self._fronts = Fronts(table)
        self._seeds = seeds
        self.tried: dict[tuple[int, ...], float] = {}

    @property
    def table(self) -> PlanTable:
        """What is known before a plan is tried."""
        return self._table

    @property
    def evaluations(self) -> int:
        """Evaluations paid for so far, those of the table too."""
        return self.database.evaluations

    def evaluate(self, choices: np.ndarray) -> np.ndarray:
        """Return the KL [N] of plans [N, U] on *selection*."""
        plans = [self.space.plan(plan) for plan in choices]
        kls = self.database.evaluate(plans, tokens=self._tokens)
        for plan, kl in zip(choices, kls, strict=True):
            self.tried[tuple(map(int, plan))] = kl
        return np.array(kls)

    def seed(self, budget: np.ndarray) -> np.ndarray | None:
        """Return the best additive plan [U] within `budget` [M]; None where none is offered."""
        return self._fronts.best(budget) if self._seeds else None

    def best(self, budget: np.ndarray) -> tuple[np.ndarray, float] | None:
        """Return the best plan [U] tried that is within `budget` [M], and its KL on *selection*."""
        within = [
            (kl, plan)
            for plan, kl in self.tried.items()
            if (self._table.cost(np.array(plan)) <= budget * (1 + 1e-9)).all()
        ]
        if not within:
            return None
        kl, plan = min(within)
        return np.array(plan), kl
