"""A rank of ZeRO that is killed or asked to stop, at any moment: nothing hangs, nothing is lost."""

import random

import pytest

from tests import tiny
from tests.faults.kills import GRACE, PLACES, TIMEOUT, measure, stopped, survived

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(900)]


def assert_survived(kills, count):
    """What `survived` has not looked at: all were killed, and the others ended in time."""
    assert len(kills) == count
    assert all(one.seconds < TIMEOUT + GRACE for one in kills)


def test_a_kill_costs_no_checkpoint_and_no_bit(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    kills = survived("ZeRO 3, all offloaded", 1, tmp_path, model, random.Random(0))
    assert_survived(kills, 1)


def test_one_rank_that_is_asked_to_stop_saves_once_for_all(tmp_path):
    stopped("ZeRO 2, optimizer offloaded", 1, tmp_path, tiny.save_model(tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_kills_at_random_moments_cost_no_checkpoint_and_no_bit(tmp_path):
    kills = measure(20, 0, tmp_path)
    assert_survived(kills, 20)
    assert any(one.in_save for one in kills)  # a busy machine may miss some: a save is short
    assert {one.place for one in kills} == {*PLACES}
    assert {one.rank for one in kills} == {0, 1}
    assert len({one.phase for one in kills}) > 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_any_rank_of_any_stage_that_is_asked_to_stop_saves_once_for_all(tmp_path, place, rank):
    stopped(place, rank, tmp_path, tiny.save_model(tmp_path / "model"))
