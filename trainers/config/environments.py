"""What settings say of the environment, judged without building it. No torch."""

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium

from llmgym.addresses import load
from llmgym.registry import spec
from trainers.config.settings import Config, DataConfig
from trainers.errors import ConfigError

EnvFactory = Callable[..., gymnasium.Env]


def env_kwargs(config: Config) -> dict[str, Any]:
    """Return the arguments of the run's environment, with the file that `data` means for it.

    In a run with PPO `data.path` is the file of an environment of `llmgym/` that takes a `path` and
    has none; `data.prompt_column`, `columns`, `format` and `last_assistant` say how to read it.
    """
    env, data = config.env, config.data
    if data.path is None or env.kwargs.get("path") is not None or not _takes_path(config):
        return dict(env.kwargs)
    kwargs: dict[str, Any] = {"path": data.path}
    for name in ("prompt_column", "columns", "last_assistant", "format"):
        if getattr(data, name) != getattr(DataConfig(), name):
            kwargs[name] = getattr(data, name)
    return {**kwargs, **env.kwargs}


def _takes_path(config: Config) -> bool:
    """Tell whether the run asks an environment of ours that reads a file."""
    name = config.env.id
    if config.is_control or not config.ppo.num_iterations or not name.startswith("llmgym/"):
        return False
    target = spec(name).kwargs.get("target")
    return isinstance(target, str) and "path" in inspect.signature(load(target)).parameters


def check_data(config: Config, *, has_env: bool = False) -> None:
    """Refuse `data.path` where nothing reads it, or something else is read instead.

    Args:
        config: settings.
        has_env: whether the environment comes from Python, which reads what it likes.

    Raises:
        ConfigError: says what to set.
        gymnasium.error.NameNotFound: no such environment.
    """
    path, env = config.data.path, config.env
    learns = config.sft.num_epochs and not config.is_control
    if path is None or learns or config.reward_model.num_epochs:
        return
    reading = [] if has_env else [alone.env for alone in config.alone if _takes_path(alone)]
    if not reading:
        name = "the environment given from Python" if has_env else env.id
        raise ConfigError(
            f"nothing would read data.path {path}: no supervised stage runs, and {name} takes no "
            "file of rows. Learn from it first, --sft.num-epochs 1, or ask its prompts: llmgym "
            f"train prompts --data {path}"
        )
    env = reading[0]
    other = env.kwargs.get("path")
    if other not in (None, path):
        raise ConfigError(
            f"data.path is {path}, and envs.0.kwargs.path is {other}: {env.id} reads one file, and "
            "no supervised stage runs. Drop one of the two."
        )
