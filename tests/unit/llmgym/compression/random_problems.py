"""Random problems of compression, small enough to try every plan of."""

from itertools import product

import numpy as np

from llmgym.compression.table import PlanTable


def random_table(seed, *, steps=4, actions=4, kinds=1, global_actions=(), holes=True):
    """A problem with random costs and predictions; more cost in one kind is more in all.

    Action 0 drops; where `holes`, some actions are missing, a drop too.
    """
    rng = np.random.default_rng(seed)
    contexts = int(np.prod(global_actions, dtype=int))
    depth, total = len(global_actions), len(global_actions) + steps
    costs = np.sort(rng.exponential(1.0, (contexts, total, actions, kinds)), axis=2)
    costs[:, :, 0] = 0.0
    predicted = np.sort(rng.exponential(1.0, (contexts, total, actions)), axis=2)[:, :, ::-1].copy()
    drops = np.zeros((total, actions), dtype=bool)
    drops[depth:, 0] = True
    for step in range(depth, total):
        for action in range(actions if holes else 0):
            if rng.random() < 0.2 and action != actions - 1:
                costs[:, step, action] = np.inf
    for step, count in enumerate(global_actions):
        costs[:, step, :count], costs[:, step, count:] = 0.0, np.inf
        predicted[:, step] = 0.0
    constant = rng.exponential(0.5, kinds)
    dense = constant + np.where(np.isfinite(costs), costs, 0.0).max(2).sum(1).max(0)
    return PlanTable(
        name=f"random {seed}",
        decisions=tuple(f"step {step}" for step in range(total)),
        global_actions=global_actions,
        action_names=tuple(map(str, range(actions))),
        cost_names=("latency", "bytes", "params")[:kinds],
        costs=costs,
        constant=constant,
        dense=dense,
        drops=drops,
        predicted=predicted,
        feature_names=("a", "b"),
        features=rng.uniform(-1, 1, (total, 2)),
    )


def every_plan(table):
    """Every plan whose actions are all there and that keeps something."""
    depth = len(table.global_actions)
    rows = []
    for plan in product(range(len(table.action_names)), repeat=len(table.decisions)):
        plan = np.array(plan)
        if any(plan[step] >= count for step, count in enumerate(table.global_actions)):
            continue
        steps = np.arange(len(plan))
        there = table.available[table.context(plan), steps, plan].all()
        if there and not table.drops[steps[depth:], plan[depth:]].all():
            rows.append(plan)
    return rows
