"""What a callable given as environment is handed, and what it cannot be handed."""

import io

import gymnasium
import pytest

import llmgym
from llmgym.errors import TaskSourceError
from tests import tiny
from trainers.collect.environments import accepted, text_envs
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.loggers.console import ConsoleLogger
from trainers.runner.run import run

WORDS = {"train": ["one", "two", "three"], "test": ["four", "five"]}


class Say(llmgym.SingleTurnEnv):
    """Pays for whatever its reward pays for."""

    def __init__(self, split="train", reward="constant"):
        super().__init__(llmgym.from_list(WORDS[split]), reward=reward)


def only_train():
    """Build the environment on one set of tasks."""
    return Say(reward=tiny.letters)


def paid_in_both(*, reward):
    """Build the environment with a reward, on one set of tasks."""
    return Say(reward=reward)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def texts(envs):
    return [task.prompt for task in envs.tasks(range(envs.num_tasks()))]


def header_of(config, **given):
    stream = io.StringIO()
    result = run(config, loggers=[ConsoleLogger(stream=stream)], **given)
    return result, stream.getvalue()


def test_only_arguments_that_a_callable_takes_by_name_are_handed_to_it():
    given = {"split": "test", "reward": 1}
    assert accepted(Say, given) == given
    assert accepted(paid_in_both, given) == {"reward": 1}
    assert accepted(only_train, given) == {}
    assert accepted(lambda split, /: None, given) == {}
    assert accepted(lambda **anything: None, given) == given


def test_a_callable_gets_the_settings_of_its_environment_and_of_evaluation():
    config = read([], {"envs.0.kwargs.split": "train"})
    for held_out, words in ((False, "train"), (True, "test")):
        envs = text_envs(config, 2, env=Say, reward=None, held_out=held_out)
        assert texts(envs) == WORDS[words]


def test_the_slots_of_a_callable_are_scored_together():
    seen = []

    class Counted(llmgym.Reward):
        """Notes how many samples a call has."""

        name = "counted"

        def score(self, samples):
            seen.append(len(samples))
            return [llmgym.Score(0.5) for _ in samples]

    envs = text_envs(read(), 3, env=Say, reward=Counted())
    envs.reset(seed=0)
    rewards = envs.step(["a", "b", "c"])[1]
    assert rewards.tolist() == [0.5, 0.5, 0.5]
    assert seen == [3]


def test_a_reward_that_a_callable_does_not_take_is_refused_before_weights_load(model, tmp_path):
    config = tiny.run_settings(model, tmp_path)
    with pytest.raises(ConfigError, match=r"env takes no reward.*Give it a parameter `reward`"):
        run(config, env=only_train, reward=tiny.letters, loggers=[])
    named = tiny.run_settings(model, tmp_path, **{"run.name": "b", "rewards.0.name": "exact"})
    with pytest.raises(ConfigError, match="env takes no reward"):
        run(named, env=only_train, loggers=[])


def test_a_run_uses_the_reward_and_the_held_out_tasks_of_a_callable(model, tmp_path):
    config = tiny.run_settings(model, tmp_path, **{"eval.num_tasks": 4})
    result, printed = header_of(config, env=Say, reward=lambda response: 0.25)
    assert result.metrics["objective/scores"] == 0.25
    prompts = {row["prompt"] for row in result.evaluations[0][1][0].rows}
    assert prompts == set(WORDS["test"])
    assert "3 train, 2 held out" in printed, "of 4 that were asked for, 2 exist"


def test_a_callable_without_a_split_is_scored_on_its_own_tasks_and_says_so(model, tmp_path):
    config = tiny.run_settings(model, tmp_path, **{"eval.num_tasks": 4})
    result, printed = header_of(config, env=paid_in_both, reward=tiny.letters)
    assert "held out nothing: env takes no split; scored on the tasks of training" in printed
    assert len(result.evaluations[0][1][0].scores) == len(WORDS["train"])


def test_tasks_that_are_trained_on_are_refused_where_a_callable_can_hold_out(model, tmp_path):
    def leaky(split="train"):
        return Say(reward=tiny.letters)

    config = tiny.run_settings(model, tmp_path, **{"eval.num_tasks": 4})
    with pytest.raises(TaskSourceError, match="also in train"):
        run(config, env=leaky, loggers=[])


def test_a_callable_of_numbers_gets_its_settings_too(tmp_path):
    seen = []

    def make(gravity=0.0):
        seen.append(gravity)
        return gymnasium.make("CartPole-v1")

    changes = {"run.kind": "control", "ppo.kl_placement": "none", "ppo.num_steps": 8}
    config = read(
        [],
        {
            **tiny.RUN,
            **changes,
            "ppo.samples_per_prompt": 1,
            "run.dir": str(tmp_path),
            "envs.0.kwargs": {"gravity": 3.0, "unknown": 1},
        },
    )
    run(config, env=make, loggers=[])
    assert set(seen) == {3.0}
