"""Settings that are wrong, from what is typed to what is said."""

from pathlib import Path

import pytest


def test_a_misspelt_setting_is_named_with_the_nearest(refused):
    said = refused({"--ppo.learning-rat": "1e-5"})
    assert "ppo.learning_rat is not a setting" in said
    assert "ppo.learning_rate" in said
    assert not Path("runs").exists()


def test_a_misspelt_setting_of_a_file_is_named_with_its_line(refused):
    Path("my.yaml").write_text("run:\n  name: a\nppo:\n  gama: 0.9\n", encoding="utf-8")
    said = refused({}, "-c", "my.yaml")
    assert "ppo.gama" in said
    assert "my.yaml, line 4" in said
    assert "gamma" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--ppo.num-minibatches": 3}, "4 rows of an iteration do not divide into "
         "ppo.num_minibatches 3. Choose a divisor of 4."),
        ({"--ppo.kl-placement": "loss", "--ppo.kl-coef": 0.1}, "ppo.kl_coef 0.1 has no effect "
         "while ppo.kl_placement is loss. Drop it, or set ppo.kl_placement reward."),
        ({"--ppo.kl-loss-coef": 0.1}, "ppo.kl_loss_coef 0.1 has no effect while ppo.kl_placement "
         "is reward. Drop it, or set ppo.kl_placement loss."),
        ({"--ppo.kl-placement": "none", "--ppo.kl-controller": "adaptive"}, "is none"),
        ({"--generation.top-p": 0.9}, "llmgym eval --top-p"),
    ],
)  # fmt: skip
def test_numbers_that_contradict_each_other_are_refused(refused, changes, says):
    assert says in refused(changes)
    assert not Path("runs").exists(), "nothing was begun"


@pytest.mark.parametrize("size", ["3", "4"])
def test_prompts_that_ranks_cannot_share_are_refused_with_numbers_that_can(
    refused, monkeypatch, size
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("LOCAL_RANK", "0")
    said = refused({"--ppo.num-prompts": 10})
    assert f"= 20 episodes cannot be shared by {size} ranks" in said
    assert {"3": "9 or 12", "4": "8 or 12"}[size] in said


def test_a_misspelt_argument_of_an_environment_is_named_with_the_nearest(refused):
    said = refused({"--envs.0.kwargs.promt_column": "q"})
    assert "envs.0.kwargs" in said
    assert "'promt_column'; did you mean 'prompt_column'?" in said


def test_an_argument_of_the_wrong_type_is_told_by_the_setting_it_came_from(refused):
    said = refused({"--envs.0.kwargs.path": 5})
    assert said.startswith("ConfigError: llmgym/Prompts-v0 cannot be built with envs.0.kwargs")


def test_an_argument_that_would_replace_the_environments_code_is_refused(refused):
    said = refused({"--envs.0.kwargs.target": "other.module:Env"})
    assert "cannot be built with envs.0.kwargs: target never reaches an environment" in said


def test_a_misspelt_environment_is_named_with_the_nearest(refused):
    said = refused({"--envs.0.id": "llmgym/Promts-v0"})
    assert "Did you mean llmgym/Prompts-v0" in said


def test_an_environment_of_numbers_needs_another_model_and_the_other_way_round(refused):
    none = {"--envs.0.kwargs.path": None, "--reward": None}
    said = refused({"--envs.0.id": "CartPole-v1", **none})
    assert "CartPole-v1 cannot be built" in said
    assert "--run.kind control" in said
    mlp = {"--model.path": None, "--run.kind": "control", "--ppo.kl-placement": "none"}
    said = refused({**none, **mlp})
    assert "llmgym/Prompts-v0 speaks text" in said


def test_a_plugin_that_is_not_there_is_named(refused):
    assert "The module no_such_plugin does not load" in refused({"--plugins": "no_such_plugin"})
    assert not Path("runs").exists()
