"""What a run holds in host memory while its models load."""

import pytest

from trainers.plan.batch import Batch
from trainers.plan.forecast import Forecast
from trainers.plan.state import Holding, ModelState

SIZES = {"policy": 1000, "critic": 900, "reference": 1000}


def load(stage, ranks, **how):
    """Bytes on the host of a rank with a GPU."""
    holding = Holding(ranks=ranks, is_gpu=True, json={"zero_optimization": {"stage": stage}})
    batch = Batch(**dict.fromkeys(Batch.__dataclass_fields__, 1))
    made = Forecast(
        parameters=SIZES, dtype="", source="", holding=holding, batch=batch, learned={}, largest=10
    )
    made.add_load(ModelState(), **how)
    return made.host["load"]


@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_a_load_holds_shares_of_all_models_and_a_few_tensors_at_stage_3(ranks):
    few = 3 * 4 * 10
    assert load(3, ranks) == pytest.approx(4 * sum(SIZES.values()) / ranks + few, abs=4)
    whole = 4 * (1000 + 1000)
    assert load(2, ranks) == load(3, ranks, is_fresh=True) == whole
