"""What a rank holds under ZeRO is what `llmgym plan` forecasts, tensor by tensor."""

import pytest

from tests.distributed.census import DTYPES, held
from tests.distributed.ranks import run_ranks
from tests.distributed.zero import PLACES

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(1000)]
FEW = [(1, "none", "bfloat16"), (2, "optimizer", "float32"), (3, "none", "float32")]


def assert_forecast(cases, size):
    for found in run_ranks(held, cases, size=size, timeout=900):
        assert [*found] == cases
        for case, (most, expected, numbers) in found.items():
            assert numbers > 2_000_000
            assert sum(most.values()) == pytest.approx(expected, rel=0.05), case


def test_two_ranks_hold_what_is_forecast():
    assert_forecast(FEW, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_of_every_stage_and_offload_hold_what_is_forecast(size):
    assert_forecast([(*place, dtype) for dtype in DTYPES for place in PLACES], size)
