"""What is refused before torch is imported: what a look at the disk and the registry tells."""

import os
from pathlib import Path

from llmgym.data.files import READERS, check_file
from llmgym.registry import spec
from trainers.collect.environments import reward_of, text_envs
from trainers.config import Config
from trainers.config.environments import check_data
from trainers.run_dir.record import refuse_work

LLMGYM_PREFIX = "llmgym/"
"""Environments that are cheap to build: what they read is read once a process."""


def check_plan(config: Config) -> None:
    """Refuse an environment that is not registered; data may lie on another machine.

    Raises:
        ConfigError: nothing would read `data.path`.
        gymnasium.error.NameNotFound: no such environment.
    """
    check_data(config)
    if config.ppo.num_iterations or config.data.path is None:
        for env in config.envs:
            spec(env.id)


def check_start(config: Config, *, is_new: bool) -> None:
    """Refuse a start of one process that comes to nothing; the run refuses the same, only later.

    Args:
        config: settings.
        is_new: whether the run neither continues nor replaces one.

    Raises:
        ConfigError: the run exists, or the environment cannot be built with its settings.
        TaskSourceError: a data file is missing or wrong.
        RewardNotFound: a name, module or function of a reward does not exist.
        gymnasium.error.NameNotFound: no such environment.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":  # ranks find it together, and one of them says it
        return
    folder = Path(config.run.dir) / config.run.name
    if is_new and not (folder / "run.lock").exists():  # whose it is, is found out when it is taken
        refuse_work(folder)
    check_data(config)
    data = config.data.path
    if data is not None and Path(data).suffix.lower() in READERS:
        check_file(Path(data))
    if config.reward_model.num_epochs or config.is_control:
        return
    check_plan(config)
    if all(reward.isolated and reward.model is None for reward in config.rewards):
        _check_tasks(config)


def _check_tasks(config: Config) -> None:
    """Build what gives tasks and judges them, once; a run of one process finds it in the cache."""
    reward = reward_of(config, None)
    for alone in config.alone:
        if not alone.env.id.startswith(LLMGYM_PREFIX):
            continue
        if config.ppo.num_iterations or config.data.path is None:
            text_envs(alone, 1, env=None, reward=reward).close()
        if config.ppo.num_iterations and config.eval.num_tasks:
            text_envs(alone, 1, env=None, reward=reward, held_out=True).close()
