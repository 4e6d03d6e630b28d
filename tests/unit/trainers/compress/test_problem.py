import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from llmgym.envs.compression import Compression
from tests.unit.trainers.compress.tiny_models import database_of, model_of
from trainers.compress.costs import CostModel
from trainers.compress.latency import Fit, LatencyTable, Workload
from trainers.compress.problem import ModelProblem, table_of
from trainers.compress.slicing import slice_model
from trainers.compress.spaces import PerLayerSpace, UniformSpace
from trainers.compress.units import KINDS, Choice, dense_plan, geometry_of, uniform_sizes
from trainers.errors import ConfigError

LEVELS = (0.0, 0.25, 0.5, 1.0)


def latency_of(geometry):
    """A made-up table: a unit costs 2 and its size."""
    units = {
        (kind, size): 2.0 * bool(size) + size
        for kind in KINDS
        for size in geometry.sizes(kind, LEVELS)
    }
    fit = Fit(r2=1.0, largest_error=0.0, rows=())
    return LatencyTable(constant=5.0, units=units, fit=fit, workload=Workload(), record={})


def problem_of(space_type=PerLayerSpace, *, bits=(16,), timed=True, kind="llama"):
    database = database_of(kind)
    geometry = database.variants.geometry
    space = space_type(geometry, levels=LEVELS, bits=bits)
    costs = CostModel(geometry, latency=latency_of(geometry) if timed else None)
    return ModelProblem(database, space, table_of(database, space, costs, "tiny")), costs


@pytest.mark.parametrize("bits", [(16,), (16, 8)])
@pytest.mark.parametrize("space_type", [PerLayerSpace, UniformSpace])
def test_costs_of_choices_are_those_of_the_plan_they_stand_for(space_type, bits):
    problem, costs = problem_of(space_type, bits=bits, timed=len(bits) == 1)
    table, rng = problem.table, np.random.default_rng(0)
    for _ in range(20):
        plan = [rng.integers(count) for count in table.global_actions]
        for step in range(len(plan), len(table.decisions)):
            there = table.available[table.context(np.array([*plan, 0, 0][:2])), step]
            plan.append(rng.choice(np.flatnonzero(there)))
        choices = np.array(plan)
        sizes = problem.space.plan(choices)
        assert table.cost(choices) == pytest.approx(costs.plan(sizes))
    assert table.dense == pytest.approx(costs.plan(problem.database.dense))


def test_predictions_are_the_kl_of_one_change_and_dense_costs_nothing():
    problem, _ = problem_of()
    table = problem.table
    dense = np.full(8, 3)
    assert problem.evaluate(dense[None])[0] == 0
    assert table.prediction(dense) == 0
    for step, action in ((0, 0), (3, 1), (6, 2)):
        changed = dense.copy()
        changed[step] = action
        if table.available[0, step, action]:
            assert problem.evaluate(changed[None])[0] == pytest.approx(table.prediction(changed))


def test_a_level_of_the_same_size_and_bits_of_nothing_are_left_out():
    geometry = geometry_of(model_of().config)
    space = PerLayerSpace(geometry, bits=(16, 8))
    attention = space.options(0, ())
    sizes = [choice[0] for choice in attention if choice is not None]
    assert sizes == [
        Choice(0), Choice(1), Choice(1, 8), Choice(2), Choice(2, 8), Choice(3), Choice(3, 8),
    ]  # fmt: skip
    assert len(attention) == len(space.action_names) == 16


def test_the_plans_of_the_uniform_space_are_plain_folders():
    problem, costs = problem_of(UniformSpace, timed=False)
    for share in (0.4, 0.6, 0.8):
        budget = np.full(len(costs.names), np.inf)
        budget[costs.names.index("params")] = share * problem.table.dense[0]
        choices = problem.seed(budget)
        plan = problem.space.plan(choices)
        assert uniform_sizes(plan)
        model = slice_model(model_of(), plan, problem.database.variants.variant)
        geometry = geometry_of(model.config)
        assert costs.plan(plan)[0] == pytest.approx(
            CostModel(geometry).plan(dense_plan(geometry))[0]
        )


def test_bytes_are_those_of_the_weights_written():
    geometry = geometry_of(model_of("mistral").config)
    costs = CostModel(geometry, weight_bytes=4)
    norms = (2 * geometry.num_layers + 1) * geometry.hidden_size
    numel = sum(p.numel() for p in model_of("mistral").parameters()) - norms
    assert costs.plan(dense_plan(geometry))[1] == 4 * numel
    fewer = costs.unit("mlp", Choice(48, 8))[1]
    assert fewer == 3 * 24 * 48 + 4 * (2 * 48 + 24)
    with pytest.raises(ConfigError, match="latency of quantized weights is not measured"):
        CostModel(geometry, latency=latency_of(geometry)).unit("mlp", Choice(48, 8))


@pytest.mark.parametrize("space_type", [PerLayerSpace, UniformSpace])
def test_the_environment_of_a_real_model_passes_the_checker_and_remembers_what_it_tried(space_type):
    problem, _ = problem_of(space_type)
    env = Compression(problem, budgets=("latency",), budget_range=(0.6, 0.95))
    check_env(env, skip_render_check=True)
    before = problem.evaluations
    rng, plans = np.random.default_rng(0), set()
    for episode in range(12):
        _, info = env.reset(seed=episode)
        over = False
        while not over:
            action = int(rng.choice(np.flatnonzero(info["action_mask"])))
            *_, over, _, info = env.step(action)
        plans.add(tuple(map(int, info["plan"])))
        budget = env._limits()
        plan, kl = problem.best(budget)
        assert (problem.table.cost(plan) <= budget * (1 + 1e-9)).all()
        assert kl <= problem.evaluate(info["plan"][None])[0]
    assert plans <= problem.tried.keys()
    assert problem.evaluations - before <= len(problem.tried)


def test_a_budget_without_a_plan_tried_has_no_best():
    problem, _ = problem_of()
    assert problem.best(np.zeros(4)) is None


def test_features_have_a_name_each_and_describe_their_units():
    table = problem_of()[0].table
    names = list(table.feature_names)
    assert len(names) == len(set(names))
    assert 20 <= len(names) <= 40
    assert np.isfinite(table.features).all()
    assert table.features[:, names.index("is_attention")].tolist() == [1, 0] * 4
    assert table.features[:, names.index("depth")].tolist() == [
        0,
        0,
        0.25,
        0.25,
        0.5,
        0.5,
        0.75,
        0.75,
    ]
    assert table.features[:, names.index("latency_share")].sum() == pytest.approx(
        1 - 5.0 / table.dense[0]
    )
    gini = table.features[:, names.index("score_gini")]
    assert ((gini >= 0) & (gini < 1)).all()
