"""The generator of a run: what it writes with, its checks, and its maker."""

from dataclasses import dataclass

import torch

from llmgym.addresses import load
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.generation.base import Generator, GeneratorParts, WeightSource
from trainers.models.causal_lm import CausalPolicy
from trainers.models.chat import ChatFormat
from trainers.models.critic import SharedActorCritic

Policy = CausalPolicy | SharedActorCritic


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationModel:
    """The module that text is written with, and how it comes by its weights."""

    policy: Policy
    weights: WeightSource


def check_generator(config: Config) -> None:
    """Refuse what the generator of `generation.engine` cannot do, before weights load.

    Raises:
        ConfigError: says which setting, or what is not installed.
        GenerationError: a server is lost, or another program.
    """
    if config.generation.ahead:
        _check_ahead(config)
    load(f"trainers.generation.{config.generation.engine}:check_engine")(config)


def _check_ahead(config: Config) -> None:
    """Refuse to write ahead where there is no room for a second policy, or for both to work."""
    generation, backend = config.generation, config.backend
    sleeps = generation.engine == "vllm" and not generation.servers and torch.cuda.is_available()
    for is_wrong, why, remedy in (
        (
            backend.name == "deepspeed" and backend.zero.stage == 3,
            "keeps a copy of the policy on every rank, and backend.zero.stage 3 has no rank that "
            "holds all of it",
            "--backend.zero.stage 2",
        ),
        (
            backend.offload_between_phases,
            "leaves no time between phases, and backend.offload_between_phases moves the "
            "optimizer away in it",
            "--backend.offload-between-phases false",
        ),
        (
            sleeps,
            "writes during the update, when a vLLM worker on the GPU of its rank sleeps",
            "--generation.servers http://HOST:PORT with workers on other GPUs",
        ),
    ):
        if is_wrong:
            raise ConfigError(f"generation.ahead 1 {why}. Set --generation.ahead 0, or {remedy}.")


def generator_of(
    config: Config,
    model: GenerationModel,
    chat: ChatFormat,
    *,
    autocast: torch.dtype | None,
    cached: bool,
    max_tokens: int | None = None,
) -> Generator:
    """Return the generator of `generation.engine`.

    Args:
        config: of the run.
        model: writes the text.
        chat: says which tokens end a response.
        autocast: the type of the trainer's forward, where it is not that of the weights.
        cached: keep what the model has read.
        max_tokens: longest row, prompt and response, or None.
    """
    make_generator = load(f"trainers.generation.{config.generation.engine}:make_generator")
    return make_generator(
        GeneratorParts(
            policy=model.policy,
            eos_token_ids=chat.eos_token_ids,
            pad_token_id=chat.pad_token_id,
            batch_size=config.generation.batch_size,
            autocast=autocast,
            weights=model.weights,
            cached=cached,
            config=config,
            tokenizer=chat.digest,
            max_tokens=max_tokens,
        )
    )
