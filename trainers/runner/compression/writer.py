"""A model that writes text and is scored on held-out tasks."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from llmgym.rewards.context import longest_sequence
from trainers.batch import Evaluation
from trainers.collect.environments import reward_of, text_envs
from trainers.config import Config
from trainers.distributed.collectives import World
from trainers.evaluation.text import evaluate_text
from trainers.evaluation.undisturbed import undisturbed
from trainers.generation.base import Generator
from trainers.generation.probe import check_rows, keeps_cache
from trainers.models.chat import ChatFormat
from trainers.models.loading import policy_of
from trainers.runner.assemble import Devices
from trainers.runner.generators import GenerationModel, generator_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TextWriter:
    """A model with what it takes to write.

    Attributes:
        config: settings of its environment and of generation.
        chat: renders messages to ids.
        generator: writes with its weights.
        longest: tokens the model takes.
    """

    config: Config
    chat: ChatFormat
    generator: Generator
    longest: int


def text_writer(config: Config, chat: ChatFormat, model: PreTrainedModel) -> TextWriter:
    """Return a writer of a model that is loaded.

    Args:
        config: `generation` is read; `model.path` is where the model came from.
        chat: of the model.
        model: bare.
    """
    cached = check_rows(config.model.path)
    policy = policy_of(model, config, chat).eval()
    if cached is None:
        cached = keeps_cache(model, str(config.model.path))
    autocast = Devices.of(config, World(), policy).autocast
    weights = GenerationModel(policy=policy, weights="shared")
    generator = generator_of(config, weights, chat, autocast=autocast, cached=cached)
    longest = longest_sequence(model.config)
    return TextWriter(config=config, chat=chat, generator=generator, longest=longest)


def task_score(writer: TextWriter) -> Evaluation:
    """Return the score of a model on `eval.num_tasks` held-out tasks, each answered greedily."""
    config = writer.config
    slots = min(config.eval.num_tasks, config.generation.batch_size)
    envs = text_envs(config, slots, env=None, reward=reward_of(config, None), held_out=True)
    try:
        with undisturbed():
            return evaluate_text(
                envs,
                writer.generator,
                chat=writer.chat,
                config=config,
                world=World(),
                max_tokens=writer.longest,
            )
    finally:
        envs.close()
