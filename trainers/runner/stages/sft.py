"""Where PPO starts from: the model of a path, a fresh one, or one that learned demonstrations."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmgym.data.survey import few
from llmgym.plural import counted
from llmgym.rewards.context import longest_sequence
from llmgym.vector import LLMVectorEnv
from trainers.backends.base import Engine
from trainers.backends.gathering import gathered_module
from trainers.backends.torch import OptimizerSettings
from trainers.backends.zero.setup import loading
from trainers.config import Config, TokenizerConfig
from trainers.distributed.collectives import from_main
from trainers.errors import ConfigError
from trainers.export.folders import export_policy
from trainers.models.adapters import adapt
from trainers.models.causal_lm import CausalPolicy, check_head
from trainers.models.chat import ChatFormat
from trainers.models.loading import (
    count_parameters,
    enable_checkpointing,
    load_chat,
    load_config,
    load_policy_model,
    load_tokenizer,
)
from trainers.models.packed_rows import longest_packed
from trainers.models.packing import packs
from trainers.models.shards import layer_by_layer
from trainers.runner.assemble import Devices, card, check_prompts
from trainers.runner.digests import demonstrations_digest, weights_digest
from trainers.runner.session import Session
from trainers.runner.stages.steps import take_steps
from trainers.supervised import sft
from trainers.supervised.fit import num_steps
from trainers.supervised.sft_data import (
    Demonstration,
    SFTExample,
    demonstrations,
    read_format,
    tokenize_demonstrations,
)

_log = logging.getLogger(__name__)

SAMPLED_TASKS = 1024
"""Tasks whose text a fresh tokenizer is trained on, where nothing is demonstrated."""


def base_model(
    session: Session, envs: Sequence[LLMVectorEnv], held_out: Sequence[LLMVectorEnv] = ()
) -> Config | None:
    """Return the settings with the model that PPO starts from; None if it was asked to stop.

    Args:
        session: of the run.
        envs: one of each environment of the run, for solutions and texts; none where `data.path`
            is used.
        held_out: those of evaluation, whose prompts must fit as well.

    Raises:
        TaskSourceError: demonstrations are missing or wrong.
        ConfigError: a fresh model has nothing to make a tokenizer from, or a checkpoint of the
            supervised stage is resumed whose end has come already.
    """
    config, folder = session.config, session.folder.path / "base"
    if config.model.path is not None and not config.sft.num_epochs:
        return config
    if not from_main(folder.exists):  # else a resumed run has come past this point
        shown = demonstrations(config, [vector.envs[0] for vector in envs]) \
            if config.sft.num_epochs else []  # fmt: skip
        tokenizer = load_tokenizer(config, _corpus(shown, envs))
        chat = load_chat(config, tokenizer, env=config.env.label)
        check_prompts(config, chat, envs)
        check_prompts(config, chat, held_out)
        session.identify(demonstrations=demonstrations_digest(shown), tokenizer=chat.digest)
        examples = _examples(session, chat, shown) if shown else []
        with loading(config):
            model = load_policy_model(config, chat, needs_room=config.ppo.num_iterations > 0)
        policy = CausalPolicy(model, temperature=1.0, chunk=config.backend.logprob_chunk)
        with layer_by_layer(policy):
            check_head(policy, longest=longest_sequence(model.config))
            packs(model, config.backend.packing)
        if config.backend.gradient_checkpointing:
            enable_checkpointing(policy.model)
        session.note("model", f"{_origin(config)}, {count_parameters(policy) / 1e6:.1f} M")
        learned = _learned(session, policy, examples) if examples else policy
        if learned is None:
            return None
        fields = card(session, config.model.path)
        from_main(lambda: export_policy(folder, learned.model, chat, fields))
    elif session.resumes_at("sft"):
        raise ConfigError(
            f"{folder} was made when the supervised stage ended, so its checkpoint has no effect. "
            "A bare --resume goes on from there; to repeat the stage's end, remove that folder."
        )
    return replace(
        config,
        model=replace(config.model, path=str(folder)),
        tokenizer=TokenizerConfig(),
    )


def _origin(config: Config) -> str:
    return config.model.path or f"{config.model.preset}, built in place"


def _corpus(shown: Sequence[Demonstration], envs: Sequence[LLMVectorEnv]) -> Iterator[str]:
    """Yield the texts a fresh tokenizer is trained on."""
    for demonstration in shown:
        yield from (str(message["content"]) for message in demonstration.messages)
        yield demonstration.response
    if shown:
        return
    if not envs:
        raise ConfigError("a fresh model learns nothing here. Set sft.num_epochs to 1 or more.")
    for vector in envs:
        size = vector.num_tasks()
        number = SAMPLED_TASKS if size is None else min(size, SAMPLED_TASKS)
        for task in vector.tasks(range(number)):
            messages = [task.prompt] if isinstance(task.prompt, str) else task.prompt
            yield from (
                message if isinstance(message, str) else message.content for message in messages
            )
            yield task.solution or ""


def _examples(
    session: Session, chat: ChatFormat, shown: Sequence[Demonstration]
) -> list[SFTExample]:
    """Return what is learned in token ids."""
    config, path = session.config, session.config.model.path
    longest = config.model.context if path is None else longest_sequence(load_config(path))
    examples, dropped = tokenize_demonstrations(
        chat, shown, longest=longest, too_long=config.data.too_long
    )
    kind = "demonstrations" if config.data.path is None or config.data.has_prompts else \
        "responses without a prompt"  # fmt: skip
    session.note("data", f"{len(examples)} {kind}, {dropped} too long")
    if config.data.path is not None:
        session.note("format", read_format(config.data, config.data.path).told)
    return examples


def _learned(
    session: Session, policy: CausalPolicy, examples: Sequence[SFTExample]
) -> CausalPolicy | None:
    """Run the supervised stage and return what learned; None if it was asked to stop before.

    Where weights are shared out over ranks, or adapters merged, rank 0 has them all.
    """
    config = session.config
    devices = Devices.of(config, session.world, policy)
    if config.model.lora.rank and config.model.path is not None:  # a fresh one learns whole
        session.identify(base=weights_digest(policy.model))  # in no checkpoint
        adapt(policy.model, config.model.lora, seed=config.run.seed)
    engine = devices.engine(
        policy,
        OptimizerSettings(
            learning_rate=config.sft.learning_rate,
            weight_decay=config.sft.weight_decay,
            max_grad_norm=config.sft.max_grad_norm,
        ),
        "policy",
    )
    is_done = _learn(session, engine, examples)
    learned = gathered_module(engine) if is_done else None
    engine.close()  # PPO makes engines of its own
    assert learned is None or isinstance(learned, CausalPolicy)
    return learned


def _learn(session: Session, engine: Engine, examples: Sequence[SFTExample]) -> bool:
    """Take the steps; False if it was asked to stop before the last."""
    config, world = session.config, session.world
    train, held_out = sft.split_rows(examples, config.sft.holdout, config.run.seed)
    total = num_steps(len(train), config.sft)
    session.note(
        "sft", f"{len(train)} learned, {len(held_out)} kept back, {counted(total, 'step')}"
    )
    for remark in few(len(examples)) if world.is_main and config.data.path is not None else ():
        _log.warning("%s", remark)
    loss = sft.SFTLoss(
        config=config,
        world=world,
        device=engine.device,
        packed_up_to=longest_packed(engine.module),
    )
    # Where base/ is gone, what the logs tell is of PPO.
    logs_of = "ppo" if config.ppo.num_iterations else None
    figures = take_steps(session, engine, train, loss, held_out=held_out, logs_of=logs_of)
    return figures is not None
