"""A small transformer learns a task by PPO alone, from random weights; unpaid, it does not."""

import pytest
from transformers import AutoModelForCausalLM

from tests.learning.reversing import accuracy, partial, settings
from tests.learning.seeds import SEEDS
from tests.slow import slow
from trainers.runner.run import run


@pytest.mark.parametrize("seed", SEEDS)
def test_three_letters_are_reversed_from_a_random_start(tmp_path, seed):
    result = run(settings(tmp_path, seed), reward=partial, loggers=[])
    (_, (before,)), *_, (_, (after,)) = result.evaluations
    assert accuracy(before) <= 0.02
    assert accuracy(after) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_they_are_reversed_by_rollouts_that_are_written_ahead(tmp_path, seed):
    # Half the rate of the others: what is learned from is as old as the 8 steps of an iteration.
    rates = {"ppo.learning_rate": 1e-3, "ppo.critic_learning_rate": 1e-3}
    ahead = {"generation.ahead": 1, "ppo.num_iterations": 36}
    config = settings(tmp_path, seed, **rates, **ahead)
    result = run(config, reward=partial, loggers=[])
    assert accuracy(result.evaluations[-1][1][0]) >= 0.99
    assert (
        result.metrics["policy/version_lag"] == config.ppo.num_epochs * config.ppo.num_minibatches
    )


@pytest.mark.parametrize("advantage", ["grpo", slow("rloo")])
@pytest.mark.parametrize("seed", SEEDS)
def test_they_are_reversed_without_a_critic(tmp_path, seed, advantage):
    groups = {"ppo.num_prompts": 64, "ppo.samples_per_prompt": 4}
    config = settings(
        tmp_path, seed, **{"ppo.critic": "none", "ppo.advantage": advantage, **groups}
    )
    result = run(config, reward=partial, loggers=[])
    (_, (before,)), *_, (_, (after,)) = result.evaluations
    assert accuracy(before) <= 0.02
    assert accuracy(after) >= 0.99
    assert not (result.run_dir / "critic").exists()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_reward_teaches_nothing(tmp_path, seed):
    config = settings(tmp_path, seed, **{"ppo.missing_eos_penalty": None})
    result = run(config, reward=lambda response: 1.0, loggers=[])
    (_, (before,)), *_, (_, (after,)) = result.evaluations
    assert accuracy(after) <= max(accuracy(before), 0.05)


def test_without_reward_not_one_weight_of_the_policy_moves(tmp_path):
    changes = {
        "ppo.missing_eos_penalty": None,
        "ppo.entropy_coef": 0.0,
        "ppo.num_iterations": 2,
        "eval.num_tasks": 0,
    }
    result = run(settings(tmp_path, 0, **changes), reward=lambda response: 0.0, loggers=[])
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "random").state_dict()
    end = AutoModelForCausalLM.from_pretrained(result.run_dir / "model").state_dict()
    # The value head starts at zero: advantages are all 0, and so is what whitening makes of them.
    assert all(end[name].equal(weight) for name, weight in start.items())
