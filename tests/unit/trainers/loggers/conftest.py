"""Shared by the loggers' tests."""

import pytest

from trainers.batch import Evaluation
from trainers.config.files import read


@pytest.fixture
def config():
    """Give a short run's settings."""
    return read([], {"run.name": "demo", "ppo.num_iterations": 4})


@pytest.fixture
def evaluation():
    """Make the held-out score of two tasks."""

    def make(mean, completion="4"):
        rows = ({"prompt": "2 + 2 =", "completion": completion, "reward": mean},)
        return Evaluation(
            env="llmgym/Arithmetic-v0", mean=mean, ci_low=mean - 0.1, ci_high=mean + 0.1,
            scores=(mean, mean), rows=rows,
        )  # fmt: skip

    return make
