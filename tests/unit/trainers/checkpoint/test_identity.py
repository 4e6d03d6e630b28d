"""What may differ between a run and its continuation."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainers.checkpoint.identity import check_identity, identity_of
from trainers.config import Config, DataConfig, EvalConfig, LogConfig, RunConfig, SFTConfig
from trainers.config.ppo import PPOConfig
from trainers.distributed.collectives import World
from trainers.errors import ConfigError

RUN = Path("runs/a")


def saved(config):
    """Return an identity as it comes back from the disk."""
    return json.loads(json.dumps(identity_of(config, World())))


def test_the_same_settings_continue():
    check_identity(saved(Config()), Config(), RUN)


@pytest.mark.parametrize(
    "changed",
    [
        {"ppo": PPOConfig(num_iterations=400)},
        {"eval": EvalConfig(num_tasks=8)},
        {"log": LogConfig(every=7)},
        {"data": DataConfig(too_long="drop")},
        {"run": RunConfig(name="b", dir="elsewhere")},
    ],
)
def test_what_does_not_touch_the_numbers_may_change(changed):
    check_identity(saved(Config()), replace(Config(), **changed), RUN)


def test_what_does_is_refused_with_every_difference_and_the_way_out():
    other = replace(Config(), ppo=PPOConfig(gamma=0.99), run=RunConfig(seed=1))
    with pytest.raises(ConfigError) as caught:
        check_identity(saved(Config()), other, RUN)
    assert str(caught.value) == (
        "cannot resume runs/a: run.seed 0 -> 1, ppo.gamma 1.0 -> 0.99. Undo it, or start anew "
        "with --run.name NAME."
    )


def test_a_setting_whose_name_begins_like_one_that_may_change_is_refused():
    with pytest.raises(ConfigError, match=r"sft\.batch_size 32 -> 8"):
        check_identity(saved(Config()), replace(Config(), sft=SFTConfig(batch_size=8)), RUN)


def test_settings_by_former_names_are_the_same_run():
    old = saved(Config(run=RunConfig(kind="control")))
    del old["config"]["run"]["kind"]
    old["config"]["model"]["preset"] = "mlp"
    old["config"]["ppo"]["whiten_advantages"] = True
    check_identity(old, Config(run=RunConfig(kind="control")), RUN)
    assert old["config"]["model"]["preset"] == "mlp", "what was saved stays as it was"
    with pytest.raises(ConfigError, match=r"run\.kind"):
        check_identity(old, Config(), RUN)


def test_settings_of_another_version_are_refused_not_guessed():
    old = saved(Config())
    old["config"]["ppo"]["a_setting_that_is_gone"] = 1
    with pytest.raises(ConfigError, match="does not know its settings"):
        check_identity(old, Config(), RUN)


def test_other_versions_of_libraries_warn(caplog):
    old = saved(Config())
    old["versions"]["torch"] = "1.0"
    check_identity(old, Config(), RUN)
    assert "saved with torch 1.0" in caplog.text
