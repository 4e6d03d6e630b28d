"""Control by the same PPO as text: thresholds on three seeds, and a run that must not learn."""

import gymnasium
import pytest
from gymnasium.wrappers import TransformReward

from tests.learning.seeds import SEEDS
from trainers.config.files import preset, read
from trainers.distributed.collectives import World
from trainers.evaluation.control import evaluate_control
from trainers.models.mlp import load_mlp
from trainers.runner.run import run


def settings(name, folder, seed, **changes):
    """A preset in a folder of its own, without checkpoints on the way."""
    here = {"run.dir": str(folder), "run.seed": seed, "checkpoint.every": 0}
    return read([preset(name)], {**here, **changes})


def held_out(result):
    """The mean return of the last evaluation, over 50 episodes."""
    _, (last,) = result.evaluations[-1]
    assert len(last.scores) == 50
    return last.mean


@pytest.mark.parametrize("seed", SEEDS)
def test_a_categorical_policy_balances_cartpole(tmp_path, seed):
    result = run(settings("cartpole", tmp_path, seed), loggers=[])
    assert held_out(result) >= 450


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_gaussian_policy_swings_the_pendulum_up(tmp_path, seed):
    result = run(settings("pendulum", tmp_path, seed), loggers=[])
    assert held_out(result) >= -300


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_cartpole_without_reward_is_not_learned(tmp_path, seed):
    def unpaid():
        return TransformReward(gymnasium.make("CartPole-v1"), lambda _: 0.0)

    config = settings("cartpole", tmp_path, seed, **{"eval.num_tasks": 0})
    result = run(config, env=unpaid, loggers=[])
    learned = evaluate_control(
        load_mlp(result.run_dir / "model"),
        lambda: gymnasium.make("CartPole-v1"),
        env="CartPole-v1",
        num_episodes=50,
        seed=seed,
        world=World(),
    )
    # The preset ends at 500; an untrained policy lasts up to 130 steps without sampling.
    assert learned.mean < 200
    assert result.metrics["env/python:unpaid/length"] < 50
