"""Held-out returns of numeric environments, with the most likely actions."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from trainers.batch import Evaluation
from trainers.collect.action_limits import limits_of, stacked_limits
from trainers.distributed.collectives import World, gather
from trainers.evaluation.statistics import summarize
from trainers.evaluation.undisturbed import undisturbed
from trainers.models.mlp import PolicyMLP, SharedMLP

MAX_STEPS = 10_000  # of a control episode, where the environment has no limit of its own
NUM_ENVS = 16  # control environments stepped together


def evaluate_control(
    policy: PolicyMLP | SharedMLP,
    make_env: Callable[[], gymnasium.Env],
    *,
    env: str,
    num_episodes: int,
    seed: int,
    world: World,
) -> Evaluation:
    """Return the mean return of episodes with the most likely actions.

    Args:
        policy: acts.
        make_env: builds one environment; those of training are not touched.
        env: its name.
        num_episodes: over all ranks; each starts from a seed of its own.
        seed: of the run.
        world: this process among its peers.
    """
    mine = list(range(num_episodes))[world.rank :: world.size]
    envs = [make_env() for _ in range(min(NUM_ENVS, len(mine)))]
    returns: dict[int, float] = {}
    try:
        with undisturbed(policy):
            for start in range(0, len(mine), NUM_ENVS):
                episodes = mine[start : start + NUM_ENVS]
                returns |= _play_control(policy, envs, episodes, seed)
    finally:
        for episode_env in envs:
            episode_env.close()
    merged = {episode: value for part in gather(returns) for episode, value in part.items()}
    return summarize(env, [merged[episode] for episode in sorted(merged)])


def _play_control(
    policy: PolicyMLP | SharedMLP, envs: Sequence[gymnasium.Env], episodes: Sequence[int], seed: int
) -> dict[int, float]:
    """Play one episode in each environment, side by side."""
    device = next(policy.parameters()).device
    live = dict(zip(episodes, envs, strict=False))
    space = envs[0].action_space
    begun = {episode: env.reset(seed=_seed(seed, episode)) for episode, env in live.items()}
    obs = {episode: first for episode, (first, _) in begun.items()}
    limits = {episode: limits_of(info, space) for episode, (_, info) in begun.items()}
    returns = dict.fromkeys(episodes, 0.0)
    for _ in range(MAX_STEPS):
        if not live:
            break
        batch = torch.from_numpy(np.stack([obs[episode] for episode in live])).to(device)
        allowed = [
            None if value is None else value.to(device)
            for value in stacked_limits([limits[episode] for episode in live])
        ]
        actions = policy.mode(batch, *allowed).cpu().numpy()
        for action, (episode, env) in zip(actions, list(live.items()), strict=True):
            obs[episode], reward, terminated, truncated, info = env.step(_allowed(action, env))
            returns[episode] += float(reward)
            if terminated or truncated:
                del live[episode]
            else:
                limits[episode] = limits_of(info, space)
    return returns


def _allowed(action: np.ndarray, env: gymnasium.Env) -> Any:  # noqa: ANN401 - of any space
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Box):
        return np.clip(action, space.low, space.high).astype(space.dtype)
    return action


def _seed(seed: int, episode: int) -> int:
    return int(np.random.default_rng((seed, episode)).integers(2**31))
