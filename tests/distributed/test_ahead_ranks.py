"""Rollouts written ahead at two ranks: the threads of both wait in a group of their own."""

import pytest
import torch

from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.distributed.test_runs_at_two_ranks import timeless, trained

ITERATIONS = 3
AHEAD = {"generation.ahead": 1, "eval.num_tasks": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_model(tmp_path_factory.mktemp("model")))


def test_two_ranks_that_write_ahead_act_and_learn_as_one_process_does(model, tmp_path):
    alone, rollouts = trained(model, str(tmp_path / "one"), ITERATIONS, False, AHEAD)
    ranks = run_ranks(trained, model, str(tmp_path / "two"), ITERATIONS, False, AHEAD)
    for iteration in range(ITERATIONS):
        rows = [row for _, parts in ranks for row in parts[iteration]]
        assert [row[:2] for row in rows] == [row[:2] for row in rollouts[iteration]]
        parts = (rows, rollouts[iteration])
        got, expected = (torch.tensor([row[2] for row in part]) for part in parts)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert alone["policy/version_lag"] == 4
    for figures, _ in ranks:
        assert timeless(figures) == pytest.approx(timeless(alone), rel=1e-4, abs=1e-6)
