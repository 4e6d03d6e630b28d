import numpy as np
import pytest

from llmgym.compression.budget import BudgetMask, nearest
from llmgym.errors import TaskSourceError
from tests.unit.llmgym.compression.random_problems import every_plan, random_table


def walked(table, mask, budget, rng):
    """A plan of random allowed actions."""
    choices = []
    for _ in table.decisions:
        allowed = mask.allowed(np.array(choices, dtype=np.int64), budget)
        assert allowed.any(), "nothing is allowed"
        choices.append(int(rng.choice(np.flatnonzero(allowed))))
    return np.array(choices)


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("global_actions", [(), (2, 3)])
def test_no_plan_of_allowed_actions_is_over_budget_and_none_ends_in_a_dead_end(
    kinds, global_actions
):
    rng = np.random.default_rng(0)
    for seed in range(2500):
        table = random_table(seed, kinds=kinds, global_actions=global_actions)
        mask = BudgetMask(table, table.cost_names)
        least = mask.least[rng.integers(len(mask.least))]
        budget = least * rng.choice([1.0, 1.0 + rng.random(), 1.5], size=kinds)
        plan = walked(table, mask, budget, rng)
        assert (table.cost(plan) <= budget * (1 + 1e-9)).all()
        depth = len(global_actions)
        assert not table.drops[np.arange(depth, len(plan)), plan[depth:]].all()


@pytest.mark.parametrize("global_actions", [(), (2, 2)])
@pytest.mark.parametrize("seed", range(8))
def test_every_plan_within_budget_can_be_reached_and_no_other(seed, global_actions):
    """Of a context that cannot keep its last decision within the budget, none is."""
    table = random_table(seed, steps=3, actions=3, kinds=1, global_actions=global_actions)
    mask = BudgetMask(table, ("latency",))
    plans = every_plan(table)
    costs = np.array([table.cost(plan)[0] for plan in plans])
    for budget in np.quantile(costs, [0.2, 0.5, 0.9]):
        budget = max(budget, mask.least.min())
        for plan, cost in zip(plans, costs, strict=True):
            allowed = [
                mask.allowed(plan[:step], np.array([budget]))[plan[step]]
                for step in range(len(plan))
            ]
            within = max(cost, mask.least[table.context(plan), 0]) <= budget * (1 + 1e-12)
            assert all(allowed) == within


def test_the_least_budget_is_that_of_the_cheapest_plan_that_keeps_the_last_decision():
    table = random_table(3, holes=False)
    mask = BudgetMask(table, ("latency",))
    keeping_last = [table.cost(plan)[0] for plan in every_plan(table) if plan[-1] != 0]
    assert mask.least.min() == pytest.approx(min(keeping_last))
    assert mask.feasible(np.array([min(keeping_last)]))
    assert not mask.feasible(np.array([min(keeping_last) * 0.999]))


def test_spent_and_remaining_are_sums_of_the_table():
    table = random_table(5, holes=False)
    mask = BudgetMask(table, ("latency",))
    choices = np.array([1, 2])
    spent = table.constant[0] + table.costs[0, 0, 1, 0] + table.costs[0, 1, 2, 0]
    assert mask.spent(choices) == pytest.approx([spent])
    least, most = mask.remaining(choices)
    assert least == pytest.approx(table.costs[0, 2:, :, 0].min(1).sum())
    assert most == pytest.approx(table.costs[0, 2:, :, 0].max(1).sum())


def test_a_decision_without_one_cheapest_action_is_refused():
    table = random_table(1, kinds=2, holes=False)
    table.costs[0, 1, :, 0] = [0, 1, 2, 3]
    table.costs[0, 1, :, 1] = [3, 2, 1, 0]
    with pytest.raises(TaskSourceError, match="step 1 has no action that is cheapest in every"):
        BudgetMask(table, ("latency", "bytes"))
    BudgetMask(table, ("bytes",))


@pytest.mark.parametrize("kinds", [("watts",), ()])
def test_a_cost_that_the_problem_has_not_is_refused(kinds):
    with pytest.raises(TaskSourceError, match="budgets must be of latency; got"):
        BudgetMask(random_table(1), kinds)


def test_the_nearest_allowed_action_is_taken_and_the_lower_of_two():
    allowed = np.array([True, False, False, True, False, True])
    assert [nearest(action, allowed) for action in range(6)] == [0, 0, 3, 3, 3, 5]
