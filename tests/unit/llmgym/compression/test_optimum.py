import numpy as np
import pytest

from llmgym.compression import optimum
from llmgym.compression.optimum import Fronts, unbeaten
from tests.unit.llmgym.compression.random_problems import every_plan, random_table


@pytest.mark.parametrize("global_actions", [(), (2, 2)])
@pytest.mark.parametrize("seed", range(20))
def test_one_pass_gives_the_best_plan_of_every_budget(seed, global_actions):
    table = random_table(seed, global_actions=global_actions)
    plans = every_plan(table)
    costs = np.array([table.cost(plan)[0] for plan in plans])
    values = np.array([table.prediction(plan) for plan in plans])
    fronts = Fronts(table)
    for budget in [*np.quantile(costs, np.linspace(0, 1, 12)), costs.max() * 2]:
        best = fronts.best(np.array([budget]))
        assert table.cost(best)[0] <= budget * (1 + 1e-9)
        within = values[costs <= budget * (1 + 1e-12)].min()
        assert table.prediction(best) == pytest.approx(within)
    assert fronts.best(np.array([costs.min() * 0.99])) is None
    assert len(fronts._made) == 1  # one pass


def test_a_plan_that_keeps_nothing_is_never_the_best():
    table = random_table(0, holes=False)
    table.predicted[:] = np.arange(4)  # dropping is predicted to be free
    budget = np.array([table.constant[0] + table.costs[0, :, 1, 0].min()])
    best = Fronts(table).best(budget)
    assert (best > 0).sum() == 1


def test_under_two_budgets_a_plan_is_within_both():
    for seed in range(20):
        table = random_table(seed, kinds=2)
        plans = every_plan(table)
        costs = np.array([table.cost(plan) for plan in plans])
        budget = np.quantile(costs, 0.6, axis=0)
        best = Fronts(table).best(budget)
        if best is not None:
            assert (table.cost(best) <= budget * (1 + 1e-9)).all()


def test_thinned_states_stay_within_a_thousandth(monkeypatch):
    table = random_table(7, steps=8, actions=4)
    exact = Fronts(table)
    budgets = np.linspace(0.3, 0.9, 20) * table.dense[0]
    best = [table.prediction(exact.best(np.array([budget]))) for budget in budgets]
    monkeypatch.setattr(optimum, "MAX_STATES", 400)
    thinned = Fronts(table)
    assert max(len(front.costs) for front in thinned.fronts(0)) <= 400
    for budget, value in zip(budgets, best, strict=True):
        plan = thinned.best(np.array([budget]))
        assert table.cost(plan)[0] <= budget * (1 + 1e-9)
        assert table.prediction(plan) <= value * 1.03


def test_states_that_no_other_beats_are_kept_in_order():
    costs, values = np.array([3.0, 1.0, 2.0, 2.0, 4.0]), np.array([5.0, 9.0, 7.0, 6.0, 5.0])
    assert unbeaten(costs, values).tolist() == [1, 3, 0]
