"""What a run holds in host memory while its models load, and while they are saved."""

import pytest

from trainers.config import BackendConfig, Config
from trainers.plan.batch import BatchShape
from trainers.plan.forecast import Forecast
from trainers.plan.page import host_lines
from trainers.plan.state import Holding, ModelState

SIZES = {"policy": 1000, "critic": 900, "reference": 1000}


def forecast(stage, ranks, *, is_gpu=True, **more):
    """A forecast without phases."""
    json = {"zero_optimization": {"stage": stage}, "bf16": {}}
    holding = Holding(ranks=ranks, is_gpu=is_gpu, json=json)
    batch = BatchShape(**dict.fromkeys(BatchShape.__dataclass_fields__, 1))
    parts = {"parameters": SIZES, "dtype": "", "source": "", "holding": holding, "batch": batch}
    return Forecast(**{**parts, "largest": 10, **more})


def load(stage, ranks, **how):
    """Bytes on the host of a rank with a GPU."""
    made = forecast(stage, ranks)
    made.add_load(ModelState(), **how)
    return made.host["load"]


def save(made):
    """Bytes on the host beyond what is offloaded: of any rank, and of rank 0 beyond that."""
    made.add_save("save", ModelState(host=7), "policy", "critic")
    return made.host["save"] - 7, made.main["save"]


@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_a_load_holds_shares_of_all_models_and_a_few_tensors_at_stage_3(ranks):
    few = 3 * 4 * 10
    assert load(3, ranks) == pytest.approx(4 * sum(SIZES.values()) / ranks + few, abs=4)
    whole = 4 * (1000 + 1000)
    assert load(2, ranks) == load(3, ranks, is_fresh=True) == whole


@pytest.mark.parametrize("ranks", [2, 32])
def test_rank_0_alone_holds_a_model_whole_in_a_save_and_one_at_a_time(ranks):
    share = 12 * (1000 + 900) / ranks
    more = max(2 * 1000 - share, 0)
    assert save(forecast(3, ranks)) == (pytest.approx(share, abs=1), pytest.approx(more, abs=1))


def test_a_save_at_stage_0_is_rank_0s():
    assert save(forecast(0, 8)) == (0, 12 * 1900)


def test_a_save_of_adapters_holds_the_whole_model_they_are_added_to():
    made = forecast(2, 4, learned={"policy": 100, "critic": 900})
    assert save(made) == (12 * 1000 // 4, 2 * 2 * 1000 - 12 * 1000 // 4)


def test_without_a_gpu_a_process_holds_at_most_what_rank_0_does():
    made = forecast(3, 32, is_gpu=False)
    made.add_save("save", ModelState(), "policy", "critic")
    assert (made.host, made.peak.working) == ({}, 2 * 1000)


def test_a_machine_holds_the_copies_of_rank_0_once():
    config = Config(backend=BackendConfig(name="deepspeed", gpus=8, nodes=4))
    made = forecast(3, 32, host={"training": 2**30, "save": 2**31}, main={"save": 2**32})
    each, most = host_lines(config, made)
    assert each == "a rank: training 1 GiB, save 2 GiB; rank 0 more: save 4 GiB"
    assert most == "about 20 GiB of memory a machine at most, in save"
