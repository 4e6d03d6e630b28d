"""Build the environment and the reward that settings name. No torch, unless they bring it."""

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from llmgym.data.curriculum import with_levels
from llmgym.env import core_env
from llmgym.errors import EnvContractError, RewardError
from llmgym.registry import create, settings_of, spec
from llmgym.rewards.answers import check_answers
from llmgym.rewards.base import resolve
from llmgym.vector import LLMVectorEnv
from trainers.config.environments import EnvFactory, env_kwargs
from trainers.config.secrets import with_secrets
from trainers.config.settings import Config
from trainers.config.text import RewardConfig
from trainers.errors import ConfigError


def reward_of(config: Config, reward: object | None) -> Any | None:  # noqa: ANN401 - a spec or object
    """Return the reward that replaces the environment's own, or None.

    Args:
        config: `rewards` is read.
        reward: a reward or a plain function from Python, which wins.

    Raises:
        RewardNotFound: a name, module or function does not exist.
        ConfigError: it does not take its arguments, or does not start.
    """
    if reward is not None:
        return reward
    config = with_secrets(config)
    named = [entry for entry in config.rewards if entry.source]
    if not named:
        return None
    entries = [
        {
            **entry.source,
            "weight": entry.weight,
            "kwargs": _dated(config, entry),
            "dialect": entry.dialect if entry.function else None,
            "isolated": entry.isolated if entry.function else None,
            "timeout_seconds": entry.timeout_seconds if entry.function else None,
        }
        for entry in named
    ]
    try:
        resolve(entries)  # cached; an error is raised now, not in the first rollout
    except RewardError as error:
        raise ConfigError(f"rewards cannot be built: {error}") from error
    return entries


def _dated(config: Config, reward: RewardConfig) -> dict[str, Any]:
    """Return a reward's arguments; a model's template prints the day on which the run started."""
    day = {"day": config.run.date} if reward.model and config.run.date else {}
    return {**day, **reward.kwargs}


def text_envs(
    config: Config, num_envs: int, *, env: EnvFactory | str | None, reward: object | None,
    held_out: bool = False,
) -> LLMVectorEnv:  # fmt: skip
    """Build slots of the run's first environment, one score group, and check its gold answers.

    Args:
        config: `envs` and `eval.kwargs` are read.
        num_envs: slots.
        env: a registered id or a callable from Python, instead of `envs`; a callable gets those
            arguments that it takes by name.
        reward: as `reward_of` returned it.
        held_out: with `eval.kwargs`, for evaluation; a curriculum has no part in it.

    Raises:
        gymnasium.error.NameNotFound: no such environment; lists near names.
        ConfigError: its arguments are wrong, the environment is numeric, a callable does not take
            the reward, or the reward cannot compare with an answer; names the row.
    """
    make = env_maker(config, env=env, reward=reward, held_out=held_out)
    with _naming(config, env, held_out=held_out):
        return _checked(LLMVectorEnv([make] * num_envs, **slot_settings(config)))


def mixed_envs(
    config: Config, slots: Sequence[int], *, env: EnvFactory | str | None, reward: object | None
) -> LLMVectorEnv:
    """Build slots of the run's environments, one score group each, and check their gold answers.

    Args:
        config: `envs` are read.
        slots: for each slot, the number of its environment in `envs`.
        env: as of `text_envs`; then there is one environment.
        reward: as `reward_of` returned it; it judges all environments.

    Raises:
        gymnasium.error.NameNotFound: as of `text_envs`.
        ConfigError: as of `text_envs`; or the spaces of two environments differ.
    """
    makes = [env_maker(alone, env=env, reward=reward) for alone in config.alone]
    for alone in config.alone:  # what cannot be built is named by its own settings
        text_envs(alone, 1, env=env, reward=reward).close()
    with constructing("the mixture of envs", "their kwargs"):
        return LLMVectorEnv([makes[number] for number in slots], **slot_settings(config))


def env_maker(
    config: Config, *, env: EnvFactory | str | None, reward: object | None, held_out: bool = False
) -> Callable[[], gymnasium.Env]:
    """Return what makes one slot of the run's first environment; arguments as of `text_envs`.

    Raises:
        gymnasium.error.NameNotFound: no such environment; lists near names.
        ConfigError: its arguments are wrong, or a callable does not take the reward.
    """
    config = with_secrets(config)
    kwargs = dict(config.env.kwargs) if callable(env) else env_kwargs(config)
    if held_out:
        kwargs |= config.eval.kwargs
    if reward is not None:
        kwargs["reward"] = reward
    if callable(env):
        if reward is not None and not accepted(env, {"reward": reward}):
            raise ConfigError(
                "the callable given as env takes no reward, so the reward would have no effect. "
                "Give it a parameter `reward` for its environment, or leave the reward out."
            )
        make: Callable[[], gymnasium.Env] = partial(env, **accepted(env, kwargs))
    else:
        env_spec = spec(env or config.env.id)
        with _naming(config, env, held_out=held_out):
            make = (
                partial(create, **settings_of(env_spec, kwargs))
                if is_text(env_spec)
                else partial(gymnasium.make, env_spec, **kwargs)
            )
    levels = config.env.curriculum.levels
    return with_levels(make, levels) if levels and not held_out else make


@contextmanager
def _naming(
    config: Config, env: EnvFactory | str | None, *, held_out: bool
) -> Generator[None, None, None]:
    """Say which settings an environment was built with where it cannot be built."""
    settings = "envs.0.kwargs and eval.kwargs" if held_out else "envs.0.kwargs"
    if callable(env):
        with constructing("the callable given as env", settings):
            yield
        return
    env_spec = spec(env or config.env.id)
    hint = "" if is_text(env_spec) else "\nOne on numbers takes --run.kind control"
    with constructing(env_spec.id, settings, hint):
        yield


def slot_settings(config: Config) -> dict[str, Any]:
    """Return how a vector plays its slots, as `LLMVectorEnv` takes it."""
    env = config.env
    return {
        "env_timeout": env.timeout_seconds,
        "executor": env.executor,
        "workers": env.workers,
        "memory_gb": env.memory_gb,
    }


def _checked(envs: LLMVectorEnv) -> LLMVectorEnv:
    core = core_env(envs.envs[0])
    check_answers(core.reward, core.tasks)
    return envs


def accepted(make: EnvFactory, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the given arguments that a callable takes by name."""
    parameters = inspect.signature(make).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(options)
    named = {
        parameter.name
        for parameter in parameters
        if parameter.kind is not parameter.POSITIONAL_ONLY
    }
    return {name: value for name, value in options.items() if name in named}


def is_text(env_spec: EnvSpec) -> bool:
    """Tell whether an id was registered by llmgym, for environments of text."""
    return env_spec.vector_entry_point == "llmgym.registry:create_vector"


@contextmanager
def constructing(env: str, settings: str, hint: str = "") -> Generator[None, None, None]:
    """Say which settings an environment was built with where it cannot be built.

    Raises:
        ConfigError: its constructor refuses them, or it is of another kind than the model.
    """
    try:
        yield
    except (EnvContractError, NotImplementedError, RewardError, TypeError) as error:
        raise ConfigError(f"{env} cannot be built with {settings}: {error}{hint}") from error
    except SystemExit as error:
        raise ConfigError(
            f"{env} cannot be built with {settings}: it called sys.exit({error.code!r}). "
            "Let it raise an exception instead."
        ) from error
