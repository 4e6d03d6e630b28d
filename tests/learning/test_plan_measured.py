"""The forecast of memory against a run that is really made."""

import pytest

from scripts.evidence.plan import compared


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_memory_of_base_is_forecast_within_fifteen_percent(tmp_path):
    found = compared("base", tmp_path)
    planned = max(one["total"] for one in found["planned"]["memory"])
    measured = max(found["measured"]["peaks"].values())
    assert planned == pytest.approx(measured, rel=0.15)
