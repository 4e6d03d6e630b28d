"""Worker: iterations of this project on CartPole, through `trainers.run` and nothing below it."""

import json
import tempfile
from collections.abc import Mapping
from typing import Any, final

import torch

import trainers
from scripts.bench.turns import Turns
from trainers.config import SCHEMA
from trainers.loggers.base import Logger


@final
class Clock(Logger):
    """Ends a turn after so many iterations."""

    def __init__(self, turns: Turns, iterations: int) -> None:
        """Take the worker's turns."""
        self._turns, self._iterations = turns, iterations

    def start(self, *_: Any, **__: Any) -> None:
        """Begin: models and environments are built, nothing was collected."""
        self._turns.begin()

    def log(self, values: Mapping[str, float], step: int, section: str = "ppo") -> None:
        """Count an iteration."""
        if step % self._iterations == 0:
            self._turns.end()

    def close(self, *_: Any) -> None:
        """Close nothing."""


def settings(shape: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the run's settings; what is not here is the default."""
    return {
        "run": {"kind": "control", "name": "bench", "dir": folder, "seed": shape["seed"]},
        "envs": [{"id": shape["env"]}],
        "model": {"hidden_sizes": shape["hidden_sizes"]},
        "ppo": {
            "num_iterations": 1_000_000,
            "num_prompts": shape["num_envs"],
            "samples_per_prompt": 1,
            "num_steps": shape["num_steps"],
            "num_epochs": shape["num_epochs"],
            "num_minibatches": shape["num_minibatches"],
            "learning_rate": shape["learning_rate"],
            "critic_learning_rate": shape["learning_rate"],
            "entropy_coef": shape["entropy_coef"],
            "max_grad_norm": shape["max_grad_norm"],
            "gamma": shape["gamma"],
            "gae_lambda": shape["gae_lambda"],
            "value_clip": None,
            "target_kl": None,
            "kl_placement": "none",
        },
        "eval": {"num_tasks": 0},
        "checkpoint": {"every": 0},
        "log": {"samples_every": 0, "wandb": {"enabled": False}},
    }


def main() -> None:
    """Run until the pipe is closed."""
    turns = Turns()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = SCHEMA.validate_json(json.dumps(settings(turns.shape, folder)))
        trainers.run(config, loggers=[Clock(turns, turns.shape["iterations"])])


if __name__ == "__main__":
    main()
