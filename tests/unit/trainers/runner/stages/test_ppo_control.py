"""A numeric run refuses what only text has a meaning for, before anything is built."""

import pytest

from trainers.config.files import preset, read
from trainers.errors import ConfigError
from trainers.runner.run import run


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ppo.kl_placement", "reward"),
        ("ppo.old_logprobs", "generator"),
        ("ppo.mismatch_correction", "tis"),
        ("ppo.loss_aggregation", "constant"),
        ("model.dtype", "bfloat16"),
    ],
)
def test_what_only_text_has_is_refused_with_its_path(tmp_path, setting, value):
    config = read([preset("cartpole")], {"run.dir": str(tmp_path), setting: value})

    with pytest.raises(ConfigError, match=rf"run.kind control .*{setting} {value}\. Set --"):
        run(config, loggers=[])


def evaluated(tmp_path, **changes):
    settings = {
        "run.dir": str(tmp_path),
        "envs.0.id": "llmgym/Speculative-v0",
        "ppo.num_iterations": 1,
        "eval.num_tasks": 3,
        **changes,
    }
    return run(read([preset("cartpole")], settings), loggers=[]).evaluations[0][1][0].mean


def test_evaluation_has_the_arguments_of_its_own(tmp_path):
    speed = evaluated(tmp_path / "speed", **{"eval.kwargs.paid": "speed"})
    assert 0.2 < speed < 5, "the speed of a sequence"
    ratios = evaluated(tmp_path / "ratio", **{"envs.0.kwargs.paid": "ratio"})
    assert ratios > 10, "a ratio per cycle; the default split has no meaning here"


def test_arguments_of_evaluation_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)envs\.0\.kwargs and eval\.kwargs.*price"):
        evaluated(tmp_path, **{"eval.kwargs.price": 3})
