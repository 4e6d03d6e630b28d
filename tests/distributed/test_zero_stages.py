"""The stages besides PPO on DeepSpeed at two ranks: they learn what one process learns."""

import json

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.distributed.test_zero_runs import settings
from tests.unit.trainers.runner.stages.test_reward_model_stage import comments
from trainers.backends.zero.setup import check_zero
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.runner.run import run

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(600)]


def finished(changes):
    """The figures a run ends with."""
    return run(read([], changes), loggers=[]).metrics


def assert_same_model(folder, tolerance):
    one, other = (load_file(folder / run / "model" / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == other.keys()
    assert tiny.difference(one, other) < tolerance


def test_a_reward_model_is_one_of_torch_and_whole(tmp_path):
    given = comments(tmp_path)
    alone = finished({**given, "run.name": "one"})
    changes = {**given, **settings("3, a copy writes", tmp_path), "run.name": "two"}
    for figures in run_ranks(finished, changes, timeout=280):
        assert figures == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert_same_model(tmp_path, 1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "two" / "model")
    assert model.config.id2label == {0: "other", 1: "good"}
    written = json.loads((tmp_path / "two" / "deepspeed.json").read_text(encoding="utf-8"))
    assert written.keys() == {"reward_model"}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["0", "2", "3, offloaded shards write"])
def test_demonstrations_and_rows_are_learned_by_adapters_as_in_one_process(tmp_path, place):
    model = str(tiny.save_model(tmp_path / "base"))
    lora = {"model.lora.rank": 3, "run.dir": str(tmp_path), "log.wandb.enabled": False}
    shown = {"model.path": model, "ppo.num_iterations": 0, "sft.num_epochs": 2,
             "sft.batch_size": 8, "data.num_examples": 24}  # fmt: skip
    zero = settings(place, tmp_path)
    finished({**lora, **shown, "run.name": "one"})
    run_ranks(finished, {**lora, **shown, **zero, "run.name": "two"}, timeout=280)
    assert_same_model(tmp_path, 1e-4)


def test_numeric_environments_are_refused_with_the_way_on():
    config = read(
        [], {"run.kind": "control", "ppo.kl_placement": "none", "backend.name": "deepspeed"}
    )
    with pytest.raises(
        ConfigError, match=r"run.kind control is trained by plain torch.*--backend.name torch"
    ):
        check_zero(config, None)
