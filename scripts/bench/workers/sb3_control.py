"""Worker: iterations of Stable-Baselines3's PPO on CartPole, as its documentation begins one."""

import torch
from stable_baselines3 import PPO  # pyright: ignore
from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore
from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore

from scripts.bench.turns import Turns


class Clock(BaseCallback):
    """Ends a turn after so many iterations, where the next one begins to collect."""

    def __init__(self, turns: Turns) -> None:
        """Take the worker's turns."""
        super().__init__()
        self._turns = turns
        self._begun = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._begun == 0:
            self._turns.begin()
        elif self._begun % self._turns.shape["iterations"] == 0:
            self._turns.end()
        self._begun += 1


def main() -> None:
    """Train until the pipe is closed."""
    turns = Turns()
    shape = turns.shape
    torch.set_num_threads(1)
    steps = shape["num_envs"] * shape["num_steps"]
    model = PPO(
        "MlpPolicy",
        make_vec_env(shape["env"], shape["num_envs"], seed=shape["seed"]),
        n_steps=shape["num_steps"],
        batch_size=steps // shape["num_minibatches"],
        n_epochs=shape["num_epochs"],
        learning_rate=shape["learning_rate"],
        ent_coef=shape["entropy_coef"],
        max_grad_norm=shape["max_grad_norm"],
        gamma=shape["gamma"],
        gae_lambda=shape["gae_lambda"],
        policy_kwargs={"net_arch": shape["hidden_sizes"]},
        seed=shape["seed"],
        device="cpu",
    )
    model.learn(1_000_000 * steps, callback=Clock(turns))


if __name__ == "__main__":
    main()
