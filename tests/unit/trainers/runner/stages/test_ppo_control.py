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
