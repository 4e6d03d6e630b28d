"""Held-out performance: a mean with its 95 % interval, in text and in control.

Tasks are dealt out over the ranks and every rank gets the whole result. Evaluation leaves no trace:
module modes and the global generators are afterwards what they were.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy import stats
from torch import nn

from llmgym.env import inner_env
from llmgym.errors import RewardError
from llmgym.tasks import TaskSource, disjoint
from llmgym.vector import LLMVectorEnv
from trainers.batch import Evaluation
from trainers.checkpoint.state_files import random_state, restore_random_state
from trainers.collect.episodes import Slot
from trainers.collect.play import PlayOptions, play
from trainers.collect.text import check_error_rate
from trainers.config import Config
from trainers.distributed import World, gather
from trainers.errors import ConfigError
from trainers.generation.base import Generator, Sampling
from trainers.models.chat import ChatFormat
from trainers.models.mlp import PolicyMLP, SharedMLP

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MAX_BCA = 1000  # the jackknife of BCa takes memory quadratic in the number of scores
MAX_STEPS = 10_000  # of a control episode, where the environment has no limit of its own
NUM_ENVS = 16  # control environments stepped together
COMPARED = 2000  # tasks compared of a source without an end

Bounds = tuple[float, float]
UNKNOWN: Bounds = (-math.inf, math.inf)


def interval(scores: Sequence[float], bounds: Bounds = UNKNOWN) -> tuple[float, float]:
    """Return the 95 % interval of the mean: Wilson's where bounds carry it, else by bootstrap.

    NaN scores, of tasks whose reward failed, are left out.

    Scores that all lie on the bounds, such as right and wrong, are a share: Wilson's interval. None
    within bounds spreads wider. Equal scores within bounds are like a share of which all were seen:
    others are rare by Wilson, and none lies beyond a bound. Where bounds are not known, equal
    scores say nothing of the spread: both ends are NaN. The bootstrap's draws are fixed, so the
    same scores give the same interval.

    Args:
        scores: one a task.
        bounds: the least and the most that a task can earn; infinite where it is not known.

    Source: Wilson 1927, JASA 22:209; Efron 1987, JASA 82:171 (BCa).
    """
    values = _finite(scores)
    low, high = bounds
    is_bounded = math.isfinite(high - low) and low <= values.min() and values.max() <= high
    if is_bounded and low < high and np.isin(values, bounds).all():
        ends = _wilson(int((values == high).sum()), len(values))
        return low + ends[0] * (high - low), low + ends[1] * (high - low)
    if np.ptp(values) > 0.0:
        return _bootstrap(values)
    if not is_bounded:
        return math.nan, math.nan
    mean, unseen = float(values[0]), _wilson(0, len(values))[1]
    return mean - unseen * (mean - low), mean + unseen * (high - mean)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return (mean of ours - theirs, low, high), task by task, by bootstrap.

    A task whose reward failed on either side, NaN, is left out. Differences that are all equal have
    their mean as interval: on these tasks the two do not differ otherwise.

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
    counted = _finite(differences)
    return (float(counted.mean()), *_bootstrap(counted))


def summary(
    env: str,
    scores: Sequence[float],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    bounds: Bounds = UNKNOWN,
) -> Evaluation:
    """Return the evaluation that one score a task makes; `bounds` as for `interval`.

    Raises:
        RewardError: not one score counts.
    """
    low, high = interval(scores, bounds)
    return Evaluation(
        env=env,
        mean=float(_finite(scores).mean()),
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
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode; afterwards restore every submodule's mode and the generators."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    state = random_state()
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        restore_random_state(state)


def evaluate_text(
    envs: LLMVectorEnv,
    generator: Generator,
    *,
    chat: ChatFormat,
    config: Config,
    world: World,
    max_tokens: int | None = None,
) -> Evaluation:
    """Return the mean score of the first `eval.num_tasks` tasks, each answered greedily once.

    A task whose reward failed has the score NaN and counts in no mean.

    Args:
        envs: held-out environments of its own, as many slots on every rank.
        generator: writes with the weights to judge.
        chat: renders messages to ids.
        config: settings.
        world: this process among its peers.
        max_tokens: longest sequence the model takes, or None.

    Raises:
        RewardError: on every rank, when more rewards failed than `ppo.max_error_rate` allows.
        TaskSourceError: on every rank, when a prompt is too long and `data.too_long` is raise.
    """
    size = envs.num_tasks()
    tasks = range(min([config.eval.num_tasks] + ([] if size is None else [size])))
    results: dict[int, tuple[float, Mapping[str, Any]]] = {}
    with undisturbed():
        for indices in rounds(len(tasks), envs.num_envs, world):
            episodes = play(
                envs,
                generator,
                chat=chat,
                config=config,
                sampling=Sampling(greedy=True),
                options=PlayOptions(
                    indices=indices, index=indices, world=world, max_tokens=max_tokens
                ),
            )
            check_error_rate(episodes, config.ppo.max_error_rate)
            results |= {slot.index: _judged(slot) for slot in episodes.slots}
    merged = {index: one for part in gather(results) for index, one in part.items()}
    scores, rows = zip(*(merged[index] for index in tasks), strict=True)
    bounds = inner_env(envs.envs[0]).reward_bounds
    return summary(config.envs[0].id, scores, rows=rows, bounds=bounds)


def rounds(num_tasks: int, num_slots: int, world: World) -> list[list[int]]:
    """Deal tasks out: one for each slot of this rank, round by round, as often on every rank.

    Slots that are left over at the end repeat tasks; every task is in at least once.
    """
    each = num_slots * world.size
    total = -(-num_tasks // each) * each
    dealt = [i % num_tasks for i in range(total)][world.rank :: world.size]
    return [dealt[i : i + num_slots] for i in range(0, len(dealt), num_slots)]


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


def _judged(slot: Slot) -> tuple[float, Mapping[str, Any]]:
    """Return an episode's score, NaN where it means nothing, and its row."""
    score = float(sum(slot.rewards)) if slot.valid else math.nan
    opening = [f"[{one['role']}] {one['content']}" for one in slot.opening]
    prompt = "\n\n".join(opening) if len(opening) > 1 else str(slot.opening[0]["content"])
    return score, {
        "prompt": prompt,
        "completion": "\n\n".join(slot.completions),
        "reward": score,
        **slot.parts,
        "finish_reason": slot.finish_reason,
    }


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


def _finite(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    counted = values[~np.isnan(values)]
    if not len(counted):
        raise RewardError(
            f"none of {len(values)} tasks has a score. Mend the reward, or raise --eval.num-tasks."
        )
    return counted


def _wilson(successes: int, number: int) -> tuple[float, float]:
    test = stats.binomtest(successes, number)
    found = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


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
