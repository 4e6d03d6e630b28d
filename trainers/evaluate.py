"""Held-out performance: a mean with its 95 % interval, in text and in control.

Tasks are dealt out over the ranks and every rank gets the whole result. Evaluation leaves no trace:
module modes and the global generators are afterwards what they were.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy import stats
from torch import nn

from llmgym.tasks import TaskSource, disjoint
from trainers.batch import Evaluation
from trainers.distributed import World, gather
from trainers.errors import ConfigError
from trainers.models.mlp import PolicyMLP, SharedMLP
from trainers.state_files import random_state, restore_random_state

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MAX_BCA = 1000  # the jackknife of BCa takes memory quadratic in the number of scores
MAX_STEPS = 10_000  # of a control episode, where the environment has no limit of its own
NUM_ENVS = 16  # control environments stepped together
COMPARED = 2000  # tasks compared of a source without an end


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean: Wilson's for 0/1 scores, else by bootstrap.

    The bootstrap's draws are fixed, so equal scores give equal intervals. One score that is neither
    0 nor 1, or scores that are all equal, say nothing of the spread: the interval is the mean.

    Source: Wilson 1927, JASA 22:209; Efron 1987, JASA 82:171 (BCa).
    """
    assert scores, "an interval needs a score"
    values = np.asarray(scores, np.float64)
    if np.isin(values, (0.0, 1.0)).all():
        test = stats.binomtest(int(values.sum()), len(values))
        found = test.proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)
    return _bootstrap(values)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return (mean of ours - theirs, low, high), task by task, by bootstrap.

    Args:
        ours: one score a task.
        theirs: of the same tasks, in the same order.

    Raises:
        ConfigError: the numbers of tasks differ.
    """
    if len(ours) != len(theirs) or not ours:
        raise ConfigError(
            f"a paired comparison needs the same tasks, got {len(ours)} and {len(theirs)} scores. "
            "Evaluate both with the same --eval.num-tasks and --eval.kwargs."
        )
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return (float(differences.mean()), *_bootstrap(differences))


def summary(
    env: str, scores: Sequence[float], rows: Sequence[Mapping[str, Any]] = ()
) -> Evaluation:
    """Return the evaluation that one score a task makes."""
    low, high = interval(scores)
    return Evaluation(
        env=env,
        mean=float(np.mean(scores)),
        ci_low=low,
        ci_high=high,
        scores=tuple(scores),
        rows=tuple(rows),
    )


def before_after(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """Return a row a task: its prompt, both completions and both rewards."""
    return [
        {
            "prompt": old["prompt"],
            "before": old["completion"],
            "after": new["completion"],
            "reward_before": old["reward"],
            "reward_after": new["reward"],
        }
        for old, new in zip(before.rows, after.rows, strict=True)
    ]


def check_disjoint(train: TaskSource, held_out: TaskSource) -> None:
    """Refuse held-out tasks that are also trained on; of endless sources the first are compared.

    Raises:
        TaskSourceError: they overlap; says by how much.
    """
    disjoint(train, held_out, cap=COMPARED)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put `module` in eval mode; afterwards restore every submodule's mode and the generators."""
    modes = {name: one.training for name, one in module.named_modules()}
    state = random_state()
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for name, one in module.named_modules():
            one.training = modes[name]
        restore_random_state(state)


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
        for one in envs:
            one.close()
    merged = {episode: value for part in gather(returns) for episode, value in part.items()}
    return summary(env, [merged[episode] for episode in sorted(merged)])


def _play_control(
    policy: PolicyMLP | SharedMLP, envs: Sequence[gymnasium.Env], episodes: Sequence[int], seed: int
) -> dict[int, float]:
    """Play one episode in each environment, side by side."""
    device = next(policy.parameters()).device
    live = dict(zip(episodes, envs, strict=False))
    obs = {episode: env.reset(seed=_seed(seed, episode))[0] for episode, env in live.items()}
    returns = dict.fromkeys(episodes, 0.0)
    for _ in range(MAX_STEPS):
        if not live:
            break
        batch = torch.from_numpy(np.stack([obs[episode] for episode in live])).to(device)
        actions = policy.mode(batch).cpu().numpy()
        for action, (episode, env) in zip(actions, list(live.items()), strict=True):
            obs[episode], reward, terminated, truncated, _ = env.step(_allowed(action, env))
            returns[episode] += float(reward)
            if terminated or truncated:
                del live[episode]
    return returns


def _allowed(action: np.ndarray, env: gymnasium.Env) -> Any:  # noqa: ANN401 - of any space
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Box):
        return np.clip(action, space.low, space.high).astype(space.dtype)
    return action


def _seed(seed: int, episode: int) -> int:
    return int(np.random.default_rng((seed, episode)).integers(2**31))


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2 or np.ptp(values) == 0.0:
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=NUM_RESAMPLES,
        method="BCa" if len(values) <= MAX_BCA else "percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
