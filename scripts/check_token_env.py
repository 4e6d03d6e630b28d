"""Check `llmgym/Token-v0` with Stable-Baselines3, and let its PPO learn on it.

Run: python scripts/check_token_env.py        (--steps N; where stable-baselines3 is installed)
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Python looks for packages in scripts/ and not in the checkout.
sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium
import numpy as np

import llmgym  # noqa: F401 - registers the ids
from llmgym.addresses import load_module

ID = "llmgym/Token-v0"
SMALL = {
    "env_id": "llmgym/ReverseTokens-v0",
    "env_kwargs": {"num_letters": 3, "separator": "", "length": 2},
    "alphabet": "abc",
    "max_prompt": 2,
    "max_tokens": 2,
}
"""Two letters of three, to be reversed: 9 prompts, 4 actions."""
EPISODES = 400


def mean_reward(model: Any, envs: Any) -> float:  # noqa: ANN401 - of the library
    """Return the mean reward of episodes that a policy draws."""
    rewards: list[float] = []
    observations = envs.reset()
    while len(rewards) < EPISODES:
        actions, _ = model.predict(observations, deterministic=False)
        observations, paid, over, _ = envs.step(actions)
        rewards += [float(reward) for reward, ended in zip(paid, over, strict=True) if ended]
    return float(np.mean(rewards))


def main(argv: Sequence[str]) -> int:
    """Print what the library's checks and its PPO say."""
    parser = argparse.ArgumentParser(description="Check llmgym/Token-v0 with Stable-Baselines3.")
    parser.add_argument("--steps", type=int, default=20_000, help="steps of PPO")
    options = parser.parse_args(argv)
    library = load_module("stable_baselines3")
    check_env = load_module("stable_baselines3.common.env_checker").check_env
    check_env(gymnasium.make(ID).unwrapped)
    print(f"stable-baselines3 {library.__version__}: check_env finds no fault in {ID}")
    make_vec_env = load_module("stable_baselines3.common.env_util").make_vec_env
    envs = make_vec_env(ID, n_envs=8, env_kwargs=SMALL, seed=0)
    model = library.PPO("MlpPolicy", envs, seed=0, n_steps=128)
    before = mean_reward(model, envs)
    model.learn(options.steps)
    after = mean_reward(model, envs)
    print(f"PPO, {options.steps} steps: mean reward {before:.3f} before, {after:.3f} after")
    return 0 if after > before else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
