"""A run on DeepSpeed that goes on at other numbers of ranks and another stage learns the same."""

import pytest

from tests.resume.moves import LEARNS, WAYS, measure

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("learns", LEARNS)
@pytest.mark.parametrize("way", WAYS)
def test_replayed_losses_go_on_at_other_ranks_and_stages(tmp_path, way, learns):
    for group, distance in measure(way, learns, tmp_path).items():
        assert distance <= 1e-5, group
