from dataclasses import replace

import numpy as np
import pytest

from tests.unit.trainers.compress.tiny_models import model_of
from trainers.compress import latency
from trainers.compress.latency import (
    Workload,
    judged,
    measure_latency,
    model_work,
    shapes,
    terms,
    unit_works,
)
from trainers.compress.timing import machine_record
from trainers.compress.units import (
    Choice,
    SizePlan,
    dense_plan,
    geometry_of,
    uniform_plan,
    uniform_sizes,
)
from trainers.errors import MeasurementError

TRUE = {"attention": 3e-4, "mlp": 1e-5, "overhead": 2e-4, "constant": 1e-3}
"""Seconds per group, per channel, per unit and per pass of a machine that is made up."""


@pytest.fixture
def made_up(monkeypatch):
    """A machine whose times are an exact sum, with `noise` on complete models."""
    noise = [0.0]

    def alone(config, workload, *, rounds):
        geometry = geometry_of(config)
        return {
            (kind, size): TRUE[kind] * size + 5e-5  # less overhead than inside a model
            for kind in ("attention", "mlp")
            for size in geometry.sizes(kind)
            if size
        }

    def complete(config, plans, workload, *, rounds):
        rng = np.random.default_rng(0)
        times = [true_seconds(plan) for plan in plans]
        return np.array(times) * rng.uniform(1 - noise[0], 1 + noise[0], len(times))

    monkeypatch.setattr(latency, "alone_times", alone)
    monkeypatch.setattr(latency, "complete_times", complete)
    return noise


def true_seconds(plan):
    total = TRUE["constant"]
    for heads, mlp in plan.layers:
        total += TRUE["attention"] * heads.size + TRUE["overhead"] * bool(heads.size)
        total += TRUE["mlp"] * mlp.size + TRUE["overhead"] * bool(mlp.size)
    return total


def test_the_fit_finds_the_overheads_of_an_exact_sum(made_up):
    config = model_of().config
    table = measure_latency(config)
    table.check()
    assert table.fit.largest_error < 1e-6
    assert table.fit.r2 > 1 - 1e-9
    geometry = geometry_of(config)
    mixed = [*dense_plan(geometry).choices]
    mixed[0], mixed[3], mixed[4] = Choice(1), Choice(8), Choice(0)
    for plan in (SizePlan(tuple(mixed)), dense_plan(geometry)):
        assert table.predicted(plan) == pytest.approx(true_seconds(plan), rel=1e-6)


def test_a_table_that_predicts_badly_or_was_judged_on_little_is_refused(made_up):
    made_up[0] = 0.4
    table = measure_latency(model_of().config)
    with pytest.raises(
        MeasurementError, match=r"wrong by up to \d+\.\d% on complete models, and 10%"
    ):
        table.check()
    few = replace(table, fit=replace(table.fit, rows=table.fit.rows[:9]))
    with pytest.raises(MeasurementError, match="9 complete models judge"):
        few.check()


def test_a_size_that_was_not_measured_is_refused(made_up):
    table = measure_latency(model_of().config)
    with pytest.raises(MeasurementError, match=r"no mlp of size 7 was measured, only \[0, 8"):
        table.seconds("mlp", Choice(7))


def test_errors_are_relative_and_the_largest_counts():
    fit = judged(np.array([1.0, 2.0, 4.0]), np.array([1.1, 2.0, 3.8]))
    assert fit.largest_error == pytest.approx(0.1)
    mean = 7 / 3
    total = sum((x - mean) ** 2 for x in (1, 2, 4))
    assert fit.r2 == pytest.approx(1 - (0.01 + 0.04) / total)


def test_shapes_are_distinct_plain_and_hold_both_ends():
    geometry = geometry_of(model_of().config)
    plans = shapes(geometry, 24, 0)
    assert len(set(plans)) == 24
    assert dense_plan(geometry) in plans
    assert all(uniform_sizes(plan) for plan in plans)
    assert len({len(plan.kept) for plan in plans}) > 2
    small = model_of(num_hidden_layers=1, intermediate_size=8)
    with pytest.raises(MeasurementError, match="24 shapes are needed"):
        shapes(geometry_of(small.config), 24, 0)


def test_terms_count_units_that_stay():
    alone = {("attention", 1): 2.0, ("mlp", 8): 3.0}
    plan = SizePlan((Choice(1), Choice(8), Choice(0), Choice(8), Choice(0), Choice(0)))
    assert terms(plan, alone) == [2.0, 6.0, 3.0, 1.0]


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family_is_timed_and_caches_are_put_back(kind, phase):
    model = model_of(kind)
    workload = Workload(prompt_tokens=4, phase=phase)
    for work in (model_work(model, workload), *unit_works(model, workload)):
        first = work.run()
        work.reset()
        second = work.run()
        ours = getattr(first, "logits", first)
        assert (ours == getattr(second, "logits", second)).all()
        assert ours.shape[1] == workload.new_tokens


def test_models_that_do_not_fit_together_are_timed_in_turn(monkeypatch):
    timed = []

    def counting(works, *, rounds):
        timed.append(len(works))
        return np.arange(len(works))[None] + 10.0 * len(timed)

    config = model_of().config
    monkeypatch.setattr(latency, "interleaved", counting)
    monkeypatch.setattr(latency, "TOGETHER_BYTES", 30_000)
    plans = shapes(geometry_of(config), 6, 0)
    seconds = latency.complete_times(config, plans, Workload(prompt_tokens=4), rounds=1)
    assert sum(timed) == 6
    assert len(timed) > 1
    assert seconds.tolist() == [
        10.0 * (number + 1) + at for number, size in enumerate(timed) for at in range(size)
    ]


def test_a_tiny_model_is_measured_for_real():
    table = measure_latency(model_of().config, Workload(prompt_tokens=8), rounds=2, models=10)
    geometry = geometry_of(model_of().config)
    assert table.predicted(dense_plan(geometry)) > table.predicted(
        uniform_plan(geometry, groups=1, channels=8, dropped=[1, 2, 3])
    )
    assert table.record["threads"] == machine_record()["threads"]
    assert len(table.fit.rows) == 10
