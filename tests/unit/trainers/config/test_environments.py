"""Which file an environment reads: its own, or the one of `data`, or none that would be read."""

import pytest

from trainers.config.environments import check_data, env_kwargs
from trainers.config.files import read
from trainers.errors import ConfigError

PROMPTS = {"envs.0.id": "llmgym/Prompts-v0", "data.path": "my.jsonl"}
LEARNS = {"sft.num_epochs": 1}
ALONE = {"ppo.num_iterations": 0, **LEARNS}
MLP = {"run.kind": "control", "envs.0.id": "CartPole-v1"}


@pytest.mark.parametrize("stage", [{}, LEARNS])
@pytest.mark.parametrize("name", ["Prompts", "GSM8K", "Preference", "Sentiment"])
def test_the_file_of_data_is_that_of_an_environment_which_reads_one_and_has_none(name, stage):
    config = read([], {**PROMPTS, **stage, "envs.0.id": f"llmgym/{name}-v0"})
    check_data(config)
    assert env_kwargs(config) == {"path": "my.jsonl"}


def test_its_columns_are_read_as_data_says_unless_the_environment_says_otherwise():
    said = {"data.prompt_column": "q", "data.columns": ["q", "a"], "data.last_assistant": "split"}
    config = read([], {**PROMPTS, **said, "envs.0.kwargs.prompt_column": "a"})
    assert env_kwargs(config) == {
        "path": "my.jsonl", "prompt_column": "a", "columns": ["q", "a"], "last_assistant": "split"
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {**PROMPTS, **ALONE},
        {"data.path": "my.jsonl", **LEARNS},
        {**PROMPTS, "envs.0.kwargs.path": "other.jsonl", **LEARNS},
        {**PROMPTS, "envs.0.kwargs.path": "my.jsonl"},
        {"data.path": "my.jsonl", "reward_model.num_epochs": 1, "ppo.num_iterations": 0},
        {"envs.0.id": "llmgym/Prompts-v0"},
    ],
)
def test_otherwise_the_environment_keeps_its_own(changes):
    config = read([], changes)
    check_data(config)
    assert env_kwargs(config) == config.env.kwargs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data.path": "my.jsonl"},
            "nothing would read data.path my.jsonl.*Arithmetic-v0 takes no",
        ),
        ({"data.path": "my.jsonl", **MLP}, "nothing would read data.path"),
        ({"data.path": "my.jsonl", **MLP, **LEARNS}, "nothing would read data.path"),
        ({**PROMPTS, "envs.0.kwargs.path": "b.jsonl"}, "data.path is my.jsonl.*path is b.jsonl"),
    ],
)
def test_a_file_that_nothing_would_read_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        check_data(read([], changes))


def test_an_environment_from_python_reads_no_file_of_data():
    with pytest.raises(ConfigError, match="the environment given from Python takes no file"):
        check_data(read([], PROMPTS), has_env=True)
