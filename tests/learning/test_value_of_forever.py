"""What a critic learns of a time limit: cut episodes go on in its eyes, ended ones do not."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from trainers.config.files import read
from trainers.runner.run import run

GAMMA = 0.9
LIMIT = 20


class Paid(gymnasium.Env):
    """Pays 1 for every step and shows nothing; over after `LIMIT` steps, `cut` or ended."""

    def __init__(self, cut):
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self._cut, self._step = cut, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._step += 1
        over = self._step == LIMIT
        return np.zeros(1, np.float32), 1.0, over and not self._cut, over and self._cut, {}


def value(folder, *, cut):
    """The mean value of a state, after the critic has come to rest."""
    config = read(
        [],
        {
            "run.dir": str(folder),
            "run.kind": "control",
            "model.hidden_sizes": [16],
            "ppo.num_iterations": 60,
            "ppo.num_prompts": 4,
            "ppo.samples_per_prompt": 1,
            "ppo.num_steps": 2 * LIMIT,
            "ppo.num_epochs": 8,
            "ppo.critic_learning_rate": 1.0e-2,
            "ppo.lr_schedule": "linear",
            "ppo.gamma": GAMMA,
            "ppo.gae_lambda": 1.0,
            "ppo.value_clip": None,
            "ppo.kl_placement": "none",
            "eval.num_tasks": 0,
            "checkpoint.every": 0,
        },
    )
    return run(config, env=lambda: Paid(cut), loggers=[]).metrics["value/mean"]


def test_truncation_bootstraps_to_the_value_of_going_on_forever(tmp_path):
    assert value(tmp_path, cut=True) == pytest.approx(1 / (1 - GAMMA), abs=0.1)


def test_termination_does_not_bootstrap(tmp_path):
    """Every state looks the same, so the value is the mean over what is left of an episode."""
    left = [sum(GAMMA**step for step in range(steps)) for steps in range(1, LIMIT + 1)]
    assert value(tmp_path, cut=False) == pytest.approx(sum(left) / LIMIT, abs=0.1)
