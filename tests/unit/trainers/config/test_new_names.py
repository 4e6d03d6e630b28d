"""Settings by the names that 0.1 had for them, and the kind of a run."""

import pytest

from trainers.config.files import dump, read
from trainers.errors import ConfigError


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "config.yaml"

    return write


def test_the_preset_mlp_is_a_run_of_control(written):
    former = read([written("model: {preset: mlp, path: null}\nrun: {name: pole}\n")])

    assert former.is_control
    assert former == read([], {"run.kind": "control", "run.name": "pole"})
    assert "kind: control" in dump(former)
    assert read([], {"model.preset": "mlp"}).is_control


def test_beside_a_model_the_preset_mlp_never_meant_anything(written):
    former = read([written("model: {preset: mlp, path: some/model}\n")])

    assert not former.is_control
    assert former == read([], {"model.path": "some/model"})


def test_a_run_of_control_takes_no_language_model():
    with pytest.raises(ConfigError, match=r"run.kind control trains a fresh MLP, got model.path"):
        read([], {"run.kind": "control", "model.path": "some/model"})


def test_whitening_that_a_config_writes_out_is_the_default_with_a_critic(written):
    former = read([written("ppo: {whiten_advantages: true}\n")])
    assert former == read([])
    group = {"ppo.critic": "none", "ppo.advantage": "rloo", "ppo.whiten_advantages": True}
    assert read([], group).ppo.whitens_advantages
