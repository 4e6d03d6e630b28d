from dataclasses import replace

import numpy as np
import pytest

from llmgym.compression.problem import (
    ARRAYS,
    NAMES,
    TableProblem,
    read_problem,
    write_problem,
)
from llmgym.errors import TaskSourceError
from tests.unit.llmgym.compression.random_problems import random_table


def test_a_problem_file_gives_the_table_back(tmp_path):
    table = random_table(2, kinds=2, global_actions=(2, 3))
    write_problem(tmp_path / "problem.npz", table)
    again = read_problem(tmp_path / "problem.npz")
    for name in NAMES:
        assert getattr(again, name) == getattr(table, name)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


@pytest.mark.parametrize("content", [None, b"junk"])
def test_a_file_that_is_no_problem_is_named(tmp_path, content):
    path = tmp_path / "problem.npz"
    if content:
        path.write_bytes(content)
    with pytest.raises(TaskSourceError, match=r"problem\.npz is no problem file"):
        read_problem(path)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_do_not_fit_together_are_named(name):
    table = random_table(2)
    with pytest.raises(TaskSourceError, match=f"{name} of random 2 must be"):
        replace(table, **{name: getattr(table, name)[..., :-1]})


def test_costs_and_predictions_are_sums_in_the_context_of_the_first_choices():
    table = random_table(4, global_actions=(2, 3), holes=False)
    plan = np.array([1, 2, 3, 0, 1, 2])
    assert table.context(plan) == 5
    cost = table.constant + sum(table.costs[5, step, plan[step]] for step in range(2, 6))
    assert table.cost(plan) == pytest.approx(cost)
    value = sum(table.predicted[5, step, plan[step]] for step in range(2, 6))
    assert table.prediction(plan) == pytest.approx(value)
    assert TableProblem(table).evaluate(plan[None]) == pytest.approx([value])


def test_a_problem_without_seeds_offers_none():
    table = random_table(4)
    assert TableProblem(table, seeds=False).seed(table.dense) is None
    assert TableProblem(table).seed(table.dense) is not None
