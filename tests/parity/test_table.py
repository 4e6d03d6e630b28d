"""The parity table keeps its bounds: the whole of it when slow tests run, two cells always."""

import pytest

from tests.parity.table import LEARNS, NEAR, PLACES, measure

pytestmark = pytest.mark.deepspeed
OFFLOADED = 1e-4
REST = 1e-5


def assert_parity(cells):
    for (place, way), cell in cells.items():
        bound = OFFLOADED if "offloaded" in place else REST
        for group, apart in cell.apart.items():
            assert apart <= bound, (place, way, group)
        for iteration, row, position, distance in cell.flips:
            assert distance <= NEAR, (place, way, iteration, row, position)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("place", "way"),
    [("DDP x 2", "LoRA"), ("ZeRO 2 x 2, optimizer offloaded", "shared trunk")],
)
def test_two_iterations_are_those_of_one_process(tmp_path, place, way):
    cells = measure([place], [way], 2, tmp_path)
    assert_parity(cells)
    assert cells[place, way].num_tokens > 16
    assert cells[place, way].flips == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_iterations_are_those_of_one_process_in_every_place(tmp_path):
    assert_parity(measure(PLACES, LEARNS, 10, tmp_path))
