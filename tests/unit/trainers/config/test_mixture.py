"""Several environments in one config: what they share, and what is refused."""

import pytest

from tests.unit.trainers.config.refusal import refused
from trainers.config import checks
from trainers.config.files import read

TWO = {"envs.0.id": "llmgym/Arithmetic-v0", "envs.1.id": "llmgym/GuessNumber-v0"}


def test_a_mixture_is_a_list_and_each_environment_has_a_config_of_its_own():
    config = read([], {**TWO, "envs.1.weight": 3.0, "envs.1.name": "guess"})
    assert [env.label for env in config.envs] == ["llmgym/Arithmetic-v0", "guess"]
    first, second = config.alone
    assert (first.env.id, second.env.id) == ("llmgym/Arithmetic-v0", "llmgym/GuessNumber-v0")
    assert first.ppo == config.ppo
    (only,) = first.alone
    assert only is first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"envs.1.id": "llmgym/Arithmetic-v0"}, "two of envs are called llmgym/Arithmetic-v0"),
        ({"envs.0.name": "a", "envs.1.name": "a"}, "two of envs are called a"),
        ({"envs.1.name": "all"}, "are called all. Take another name"),
        ({"envs.1.timeout_seconds": 5.0}, "envs.1.timeout_seconds is 5.0 and envs.0"),
        ({"envs.1.executor": "threads"}, "envs.1.executor is threads and envs.0.executor inline"),
        ({"envs.0.weight": 1000.0, "ppo.num_prompts": 8}, "environment 1 of the mixture would get"),
        ({"run.kind": "control"}, "run.kind control trains on one environment as it is, got 2"),
        ({"envs.1.weight": 0.0}, "envs.1.weight"),
        ({"envs.1.curriculum.levels": [1]}, "two different levels or more"),
        ({"envs.1.curriculum.levels": [1, 2], "envs.1.curriculum.up": 0.1}, "down < up"),
    ],
)
def test_environments_that_cannot_share_a_batch_are_refused(changes, words):
    assert words in refused([], {**TWO, **changes})


def test_a_curriculum_without_levels_is_said_to_have_no_effect():
    config = read([], {"envs.0.curriculum.up": 0.9})
    (message,) = checks.without_effect(config, has_gpu=False)
    assert message.startswith("envs.0.curriculum.up 0.9 has no effect while")
    config = read([], {"envs.0.curriculum.up": 0.9, "envs.0.curriculum.levels": [1, 2]})
    assert checks.without_effect(config, has_gpu=False) == []


def test_two_environments_of_one_id_need_names():
    config = read([], {**TWO, "envs.1.id": TWO["envs.0.id"], "envs.1.name": "long",
                       "envs.1.kwargs.digits": 3})  # fmt: skip
    assert [env.label for env in config.envs] == [TWO["envs.0.id"], "long"]
