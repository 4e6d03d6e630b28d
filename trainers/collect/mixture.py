"""Which environment each episode of a batch is of, and what its curriculum learns from it."""

from collections.abc import Sequence
from math import isfinite

import torch

from llmgym.data.curriculum import Levels, LevelSampler, LevelSource
from llmgym.data.mixture import MixtureSampler, quotas, spread
from llmgym.data.tasks import TaskSampler
from llmgym.env import core_env, inner_env
from llmgym.vector import LLMVectorEnv
from trainers.collect.episodes import Episodes
from trainers.config import Config
from trainers.distributed.collectives import World, global_sum
from trainers.errors import ConfigError


def prompt_envs(config: Config) -> list[int]:
    """Return the number in `envs` of each prompt of a batch, over all ranks."""
    return spread(quotas([env.weight for env in config.envs], config.ppo.num_prompts))


def rank_slots(config: Config, world: World) -> list[int]:
    """Return the number in `envs` of each of this rank's episodes of a batch."""
    prompts = prompt_envs(config)
    share = world.share(len(prompts))
    return [prompts[i] for i in share for _ in range(config.ppo.samples_per_prompt)]


def task_sampler(
    config: Config, sources: Sequence[LLMVectorEnv], world: World
) -> TaskSampler | MixtureSampler:
    """Return what deals out the tasks of a run to this rank.

    Args:
        config: `envs` are read.
        sources: a vector of each environment.
        world: this process among its peers.

    Raises:
        ConfigError: the reward of an environment with a curriculum has no bounds.
    """
    (first, *others) = config.envs
    if not others and not first.curriculum.levels:
        length = sources[0].num_tasks()
        return TaskSampler(length, config.run.seed, rank=world.rank, world_size=world.size)
    samplers = {
        alone.env.label: _sampler(alone, source)
        for alone, source in zip(config.alone, sources, strict=True)
    }
    return MixtureSampler(samplers, prompt_envs(config), rank=world.rank, world_size=world.size)


def earned_by_env(
    episodes: Episodes, envs: LLMVectorEnv, names: Sequence[str], config: Config
) -> dict[str, tuple[float, int]]:
    """Return what valid episodes earned by the name of their environment; a collective.

    Args:
        episodes: one for each slot.
        envs: their environments.
        names: of the environment of each slot.
        config: names all environments, also those that this rank has no slot of.

    Returns:
        The sum over episodes, each as a share between the least and the most it can earn, and their
        number, over all ranks.
    """
    labels = [env.label for env in config.envs]
    totals = torch.zeros(len(labels), 2, dtype=torch.float64)
    for slot, env, name in zip(episodes.slots, envs.envs, names, strict=True):
        low, high = inner_env(env).reward_bounds
        if slot.valid and isfinite(high - low):
            share = (sum(slot.rewards) - low) / (high - low)
            totals[labels.index(name)] += torch.tensor([share, 1.0], dtype=torch.float64)
    pooled = global_sum(totals).tolist()
    return {label: (row[0], int(row[1])) for label, row in zip(labels, pooled, strict=True)}


def _sampler(config: Config, source: LLMVectorEnv) -> TaskSampler | LevelSampler:
    """Return what deals out the tasks of one environment to all ranks together."""
    curriculum, seed = config.env.curriculum, config.run.seed
    if not curriculum.levels:
        return TaskSampler(source.num_tasks(), seed)
    tasks, bounds = core_env(source.envs[0]).tasks, inner_env(source.envs[0]).reward_bounds
    if not all(map(isfinite, bounds)):
        raise ConfigError(
            "a curriculum compares rewards with the most an episode can earn, and "
            f"{config.env.label} earns from {bounds[0]} to {bounds[1]}. Drop its "
            "curriculum, or give a bounded reward."
        )
    assert isinstance(tasks, LevelSource)
    rule = Levels(tuple(curriculum.levels), curriculum.up, curriculum.down, curriculum.window)
    return LevelSampler(rule, tasks.sizes(), seed)
