"""A target's model, loaded: it answers, or is scored on held-out tasks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import gymnasium
import torch
from torch import Tensor

from llmgym.registry import spec
from llmgym.rewards.context import longest_sequence
from trainers.batch import Evaluation
from trainers.collect.env_slots import make_envs
from trainers.collect.environments import reward_of, text_envs
from trainers.config import Config
from trainers.distributed.collectives import World
from trainers.evaluation.control import evaluate_control
from trainers.evaluation.text import evaluate_text
from trainers.generation.base import Generator, Request, Response, Sampling
from trainers.generation.probe import check_rows, keeps_cache
from trainers.inference.targets import Target
from trainers.models.causal_lm import CausalPolicy
from trainers.models.chat import ChatFormat
from trainers.models.loading import load_chat, load_policy_model, load_tokenizer, policy_of
from trainers.models.mlp import load_mlp
from trainers.runner.assemble import Devices
from trainers.runner.generators import GenerationModel, generator_of


@final
class FixedSampling(Generator):
    """A generator with fixed sampling settings, whatever its caller asks for."""

    def __init__(self, inner: Generator, sampling: Sampling) -> None:
        self.exact = inner.exact
        self._inner, self._sampling = inner, sampling

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._inner.policy_version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Write one response to each request."""
        return self._inner.generate(requests, self._sampling)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take weights."""
        self._inner.load_weights(weights, version)

    def sleep(self) -> None:
        """Give back memory."""
        self._inner.sleep()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A loaded model that answers.

    Attributes:
        config: the target's, naming its model.
        longest: tokens the model takes.
    """

    config: Config
    policy: CausalPolicy
    chat: ChatFormat
    generator: Generator
    longest: int


def load_for_inference(target: Target, sampling: Sampling) -> LoadedModel:
    """Load a target's model and tokenizer; no critic.

    Raises:
        ConfigError: the folder lacks a tokenizer, a template, or is no model.
    """
    own = target.config.model
    config = replace(
        target.config,
        model=replace(own, path=target.model),
        tokenizer=target.tokenizer,
        generation=replace(
            target.config.generation, engine="transformers"
        ),  # exact, starts nothing
    )
    chat = load_chat(config, load_tokenizer(config), env=config.env.id)
    cached = check_rows(config.model.path)
    model = load_policy_model(config, chat, needs_room=False)
    policy = policy_of(model, config, chat)
    policy.to(World().device).eval()
    if cached is None:
        cached = keeps_cache(model, str(config.model.path))
    autocast = Devices.of(config, World(), policy).autocast
    writer = GenerationModel(policy=policy, weights="shared")
    generator = generator_of(config, writer, chat, autocast=autocast, cached=cached)
    return LoadedModel(
        config=config,
        policy=policy,
        chat=chat,
        generator=FixedSampling(generator, sampling),
        longest=longest_sequence(model.config),
    )


def held_out_score(target: Target, sampling: Sampling) -> Evaluation:
    """Score a target on held-out tasks of its first environment, or on control episodes."""
    config = target.config
    if config.is_control:
        env_spec, kwargs = spec(config.env.id), config.env.kwargs
        return evaluate_control(
            load_mlp(Path(target.model)),
            lambda: make_envs(lambda: gymnasium.make(env_spec, **kwargs), 1)[0],
            env=config.env.id,
            num_episodes=config.eval.num_tasks,
            seed=config.run.seed + 1,
            world=World(),
        )
    model = load_for_inference(target, sampling)
    envs = text_envs(
        config,
        min(config.eval.num_tasks, config.generation.batch_size),
        env=None,
        reward=reward_of(config, None),
        held_out=True,
    )
    try:
        with torch.no_grad():
            return evaluate_text(
                envs,
                model.generator,
                chat=model.chat,
                config=config,
                world=World(),
                max_tokens=model.longest,
            )
    finally:
        envs.close()
