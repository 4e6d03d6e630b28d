import numpy as np
import pytest

from llmgym.compression.optimum import Fronts
from tests.unit.llmgym.compression.random_problems import every_plan, random_table
from trainers.compress.baselines import (
    SEARCHERS,
    OutOfEvaluationsError,
    Search,
    Subject,
    mutated,
    run_search,
)

ITERATIVE = ("random", "evolution", "evolution from additive")


def subject_of(seed=0, *, steps=6, global_actions=(), interaction=0.0):
    """A problem of layers of two decisions, or of one where there are global ones."""
    table = random_table(seed, steps=steps, global_actions=global_actions, holes=False)
    depth, size = len(global_actions), 1 if global_actions else 2
    layers = [list(range(at, at + size)) for at in range(depth, depth + steps, size)]
    calls = []

    def evaluate(choices):
        calls.append(len(choices))
        pairs = (choices[:, 1:] == choices[:, :-1]).sum(1)
        return np.array([table.prediction(plan) for plan in choices]) + interaction * pairs

    influences = np.random.default_rng(seed).random(len(layers))
    return Subject(table=table, evaluate=evaluate, layers=layers, influences=influences), calls


def searched(name, subject, share=0.7, *, limit=150, seed=0):
    search = Search(subject, share * subject.table.dense, limit=limit, seed=seed)
    return run_search(SEARCHERS[name], search), search


@pytest.mark.parametrize("global_actions", [(), (2, 2)])
@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_ends_within_budget_and_evaluations(name, global_actions):
    for seed in range(3):
        subject, calls = subject_of(seed, global_actions=global_actions, interaction=0.1)
        result, search = searched(name, subject, limit=60, seed=seed)
        assert result.plan is not None or name == "greedy"  # whose evaluations may be spent before
        if result.plan is not None:
            assert search.within(result.plan)
            assert search.keeps(result.plan)
            assert result.kl == pytest.approx(float(subject.evaluate(result.plan[None])[0]))
            calls.pop()
        assert result.evaluations == sum(calls) <= 60


def test_a_cost_without_a_budget_and_a_missing_action_are_no_numbers_of_a_ladder():
    table = random_table(0, steps=4, kinds=2, holes=True)
    assert not table.available.all()
    subject = Subject(table=table, evaluate=len, layers=[[0, 1], [2, 3]], influences=[0.0, 1.0])
    search = Search(subject, np.array([0.7 * table.dense[0], np.inf]), limit=1)
    for step in range(4):
        ladder = search.ladder(search.dense(), step)
        costs = table.costs[0, step, ladder, 0]
        assert (np.diff(costs) >= 0).all()
        assert len(ladder) == table.available[0, step].sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_additive_plan_is_the_best_where_the_kl_is_additive(seed):
    subject, _ = subject_of(seed, steps=4)
    results = {name: searched(name, subject)[0] for name in SEARCHERS}
    best = min(
        subject.table.prediction(plan)
        for plan in every_plan(subject.table)
        if (subject.table.cost(plan) <= 0.7 * subject.table.dense).all()
    )
    assert results["additive"].kl == pytest.approx(best)
    assert results["additive"].evaluations == 1
    for result in results.values():
        assert result.kl >= best - 1e-9


def test_evolution_from_the_additive_plan_is_never_worse_than_it():
    improved = 0
    for seed in range(6):
        subject, _ = subject_of(seed, interaction=0.5)
        additive, _ = searched("additive", subject)
        evolved, _ = searched("evolution from additive", subject, limit=100)
        assert evolved.kl <= additive.kl
        improved += evolved.kl < additive.kl
    assert improved


def test_a_plan_is_paid_for_once_and_the_limit_ends_a_search():
    subject, calls = subject_of(0)
    search = Search(subject, subject.table.dense, limit=2, paid=0)
    plan = search.dense()
    assert search.kl(plan) == search.kl(plan)
    assert calls == [1]
    plan[0] = 0
    search.kl(plan)
    plan[1] = 0
    with pytest.raises(OutOfEvaluationsError):
        search.kl(plan)
    paid = Search(subject, subject.table.dense, limit=10, paid=10)
    assert run_search(SEARCHERS["additive"], paid).evaluations == 10


def test_uniform_takes_one_level_and_raises_in_depth_order():
    subject, _ = subject_of(3)
    result, search = searched("uniform", subject)
    levels = result.plan
    assert list(levels) == sorted(levels, reverse=True) or len(set(levels)) <= 4
    for step in range(len(levels)):
        dearer = search.moved(levels, step, 1)
        assert dearer is None or not search.within(dearer)


def test_shortgpt_drops_the_layers_of_least_influence_first():
    subject, _ = subject_of(1)
    result, _ = searched("shortgpt", subject, 0.5)
    gone = [n for n, layer in enumerate(subject.layers) if not result.plan[layer].any()]
    order = np.argsort(subject.influences).tolist()
    reduced = [n for n, layer in enumerate(subject.layers) if (result.plan[layer] < 3).any()]
    assert set(gone) <= set(reduced) <= set(order[: len(reduced)])


def test_sleb_and_greedy_score_every_candidate_of_a_step():
    subject, calls = subject_of(2)
    result, _ = searched("sleb", subject, 0.55)
    layers = len(subject.layers)
    dropped = 0
    while sum(range(layers - dropped, layers + 1)) < result.evaluations - 1:
        dropped += 1
    assert sum(range(layers - dropped, layers + 1)) in (result.evaluations, result.evaluations - 1)
    greedy, _ = searched("greedy", subject, 0.55)
    assert greedy.evaluations > len(subject.table.decisions)
    assert calls


def test_two_searches_with_one_seed_try_the_same_plans():
    subject, _ = subject_of(5, interaction=0.3)
    for name in ITERATIVE:
        ours, theirs = (searched(name, subject, limit=50, seed=7)[0] for _ in range(2))
        assert ours.kl == theirs.kl
        np.testing.assert_array_equal(ours.plan, theirs.plan)


def test_children_differ_from_their_parent_and_keep_the_budget():
    subject, _ = subject_of(4)
    search = Search(subject, 0.6 * subject.table.dense, limit=10)
    parent = Fronts(subject.table).best(search.budget)
    children = [mutated(search, parent) for _ in range(50)]
    assert all(search.within(made) for made in children)
    assert sum((made != parent).any() for made in children) > 25
