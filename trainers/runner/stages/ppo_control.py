"""A run on numeric environments: the same PPO with an actor-critic MLP."""

from functools import partial
from typing import Any, final

import gymnasium
import torch

from llmgym.registry import spec
from trainers.batch import Evaluation
from trainers.collect.control import ControlCollector
from trainers.collect.env_slots import make_envs
from trainers.collect.environments import accepted, constructing, is_text
from trainers.config import Config, EvalConfig
from trainers.config.environments import EnvFactory, check_data
from trainers.errors import ConfigError
from trainers.evaluation.control import evaluate_control
from trainers.export.folders import export_mlp
from trainers.learner import Learner
from trainers.models.loading import count_parameters
from trainers.models.mlp import ValueMLP, build_control
from trainers.runner.assemble import Devices, card, optimizer_settings
from trainers.runner.loop import improve
from trainers.runner.session import Session


def train_stage(
    session: Session, env: EnvFactory | str | None, reward: object | None
) -> dict[str, float]:
    """Run PPO; return the last iteration's figures by name.

    Raises:
        ConfigError: a setting is for text.
    """
    config = session.config
    check_data(config, has_env=callable(env))
    if reward is not None or any(entry.source for entry in config.rewards):
        raise ConfigError(
            "a numeric environment pays its own rewards: drop --reward, or wrap the environment."
        )
    _check_numeric(config)
    makes = [_maker(config, env, kwargs) for kwargs in (config.env.kwargs, _held_out(config))]
    training = ControlTraining(session, *makes)
    try:
        return improve(session, training)
    finally:
        training.collector.close()


def _check_numeric(config: Config) -> None:
    """Refuse settings that only text has a meaning for."""
    ppo = config.ppo
    for path, got, allowed, why in (
        (
            "ppo.kl_placement",
            ppo.kl_placement,
            ("none",),
            "has no reference to measure a KL against",
        ),
        ("ppo.old_logprobs", ppo.old_logprobs, ("auto", "recompute"), "has no separate generator"),
        (
            "ppo.mismatch_correction",
            ppo.mismatch_correction,
            ("none",),
            "has no separate generator",
        ),
        ("ppo.loss_aggregation", ppo.loss_aggregation, ("token",), "takes each step as a row"),
        ("model.dtype", config.model.dtype, ("auto", "float32"), "computes in float32"),
        ("backend.name", config.backend.name, ("torch",), "has too little to share out"),
    ):
        if got not in allowed:
            flag = path.replace("_", "-")
            raise ConfigError(
                f"run.kind control {why}, got {path} {got}. Set --{flag} {allowed[0]}."
            )


def _held_out(config: Config) -> dict[str, Any]:
    """Return the arguments of evaluation: those of `eval.kwargs` that are not there by default."""
    usual = EvalConfig().kwargs
    own = {k: v for k, v in config.eval.kwargs.items() if k not in usual or v != usual[k]}
    return {**config.env.kwargs, **own}


def _maker(config: Config, env: EnvFactory | str | None, kwargs: dict[str, Any]) -> EnvFactory:
    """Return what makes the environment of a callable, of an id, or of the config."""
    if callable(env):
        return partial(env, **accepted(env, kwargs))
    env_spec = spec(env or config.env.id)
    if is_text(env_spec):
        raise ConfigError(
            f"{env_spec.id} speaks text, and run.kind control reads numbers. Set --run.kind text."
        )
    return partial(gymnasium.make, env_spec, **kwargs)


@final
class ControlTraining:
    """Policy, critic and environments of a numeric run.

    Args:
        session: of the run.
        make: builds one environment.
        make_held_out: builds one for evaluation.
    """

    def __init__(self, session: Session, make: EnvFactory, make_held_out: EnvFactory) -> None:
        config, world = session.config, session.world
        self._session, self._make_held_out = session, make_held_out
        with constructing(config.env.id, "envs.0.kwargs"):
            envs = make_envs(make, len(world.share(config.ppo.num_prompts)) * config.ppo.group_size)
        self._policy, value = build_control(
            envs[0].observation_space,
            envs[0].action_space,
            hidden_sizes=config.model.hidden_sizes,
            seed=config.run.seed,
            critic=config.ppo.critic,
        )
        devices = Devices(device=world.device, dtype=torch.float32)
        engine = devices.engine(
            self._policy, optimizer_settings(config, config.ppo.learning_rate), "policy"
        )
        critic = None
        if value is not None:
            settings = optimizer_settings(config, config.ppo.critic_learning_rate)
            critic = devices.engine(value, settings, "critic")
        self.learner = Learner(engine, critic, config)
        self.collector = ControlCollector(envs, config, world)
        session.bound(self.collector.limit)
        session.note("model", f"mlp {config.model.hidden_sizes}, "
                              f"{count_parameters(self._policy):,} parameters")  # fmt: skip

    def evaluate(self) -> list[Evaluation]:
        """Play held-out episodes with the most likely actions; empty where there are none."""
        config = self._session.config
        if not config.eval.num_tasks:
            return []
        return [
            evaluate_control(
                self._policy,
                self._held_out_env,
                env=config.env.label,
                num_episodes=config.eval.num_tasks,
                seed=config.run.seed + 1,
                world=self._session.world,
            )
        ]

    def _held_out_env(self) -> gymnasium.Env:
        with constructing(self._session.config.env.id, "envs.0.kwargs and eval.kwargs"):
            return make_envs(self._make_held_out, 1)[0]

    def export(self, name: str) -> None:
        """Write the current policy with its critic; the name `critic` is left out."""
        if self._session.world.is_main and name != "critic":
            value = self.learner.critic_module
            assert value is None or isinstance(value, ValueMLP)
            folder = self._session.folder.path / name
            export_mlp(folder, self._policy, value, card(self._session, None))
