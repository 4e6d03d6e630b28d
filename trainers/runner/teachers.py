"""The teacher of a distillation: refused before weights load, then loaded as the reference is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from llmgym.plural import counted
from llmgym.rewards.context import longest_sequence
from trainers.backends.zero.setup import loading
from trainers.batch import Inputs
from trainers.config import Config, TokenizerConfig
from trainers.errors import ConfigError
from trainers.generation.base import Generator, WeightSource
from trainers.generation.probe import check_rows, keeps_cache
from trainers.learner import Teacher
from trainers.models.causal_lm import CausalPolicy, TeacherPolicy, check_head
from trainers.models.chat import ChatFormat
from trainers.models.loading import (
    check_context,
    count_parameters,
    load_causal_lm,
    load_config,
    load_tokenizer,
    policy_of,
)
from trainers.models.packing import packs
from trainers.models.shards import layer_by_layer
from trainers.runner.assemble import Devices
from trainers.runner.digests import weights_digest
from trainers.runner.generators import GenerationModel, Policy
from trainers.runner.session import Session

NUM_SHOWN = 3
"""Tokens that a message shows."""


def check_teacher(config: Config, source: str) -> None:
    """Refuse what a teacher cannot teach, before weights load.

    Raises:
        ConfigError: there is no such model, its vocabulary is another, prompts and responses do not
            fit its context, or rollouts are written in a way that leaves nothing to compare with.
    """
    distill = config.distill
    if config.generation.ahead:
        raise ConfigError(
            "distill.teacher compares the student with itself as it writes, and generation.ahead 1 "
            "writes with a copy that is one iteration older. Set --generation.ahead 0."
        )
    if distill.method == "sft_kd" and config.generation.engine != "transformers":
        raise ConfigError(
            f"distill.method sft_kd has the teacher write, and generation.engine "
            f"{config.generation.engine} writes with the student. Set --generation.engine "
            "transformers, or --distill.method gkd."
        )
    described = load_config(source)
    limits = config.generation
    check_context(described, limits.max_prompt_tokens, limits.max_new_tokens)
    student = config.tokenizer.path or config.model.path
    if student is None:
        raise ConfigError(
            f"distill.teacher {source} has no student. Name one with --model.path STUDENT; a fresh "
            f"one takes the teacher's vocabulary by --tokenizer.path {source}."
        )
    _check_vocabularies(config, source)


def _check_vocabularies(config: Config, source: str) -> None:
    """Refuse another vocabulary than the student's.

    Raises:
        ConfigError: a token has another id, or is in one vocabulary alone.
    """
    mine = load_tokenizer(config).get_vocab()
    theirs = _tokenizer_of(config, source).get_vocab()
    if mine != theirs:
        differing = sorted(word for word in {*mine, *theirs} if mine.get(word) != theirs.get(word))
        words = ", ".join(map(repr, differing[:NUM_SHOWN]))
        raise ConfigError(
            f"distill.teacher {source} has another vocabulary than the student "
            f"{config.tokenizer.path or config.model.path}: {counted(len(differing), 'token')} of "
            f"{len(mine)} and {len(theirs)} differ, such as {words}. A teacher scores the "
            "student's tokens by their ids, so both need one tokenizer: distill into a model that "
            "was made from the teacher, or of its family."
        )
    path, embedded = config.model.path, load_config(source).get_text_config().vocab_size
    here = load_config(path).get_text_config().vocab_size if path else max(mine.values()) + 1
    if here != embedded and not config.generation.mask_unknown:
        raise ConfigError(
            f"the student embeds {here} tokens and distill.teacher {source} {embedded}, of one "
            f"vocabulary of {len(mine)}. Set --generation.mask_unknown true, which gives ids "
            "without a token probability 0 in both."
        )


def _tokenizer_of(config: Config, source: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the teacher's folder."""
    return load_tokenizer(
        replace(
            config,
            model=replace(config.model, path=source),
            tokenizer=TokenizerConfig(),
        )
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTeacher:
    """A teacher in its place.

    Attributes:
        scores: what the student is compared with.
        policy: the model inside of it, which can write.
        weights: how `policy` comes by its weights.
        writes: True where rollouts are the teacher's text.
        source: its folder or hub id.
    """

    scores: Teacher
    policy: CausalPolicy
    weights: WeightSource
    writes: bool
    source: str


def load_teacher(
    session: Session, chat: ChatFormat, devices: Devices, student: Policy
) -> LoadedTeacher | None:
    """Load the teacher, placed as the reference of a run: sharded where the policy is.

    Args:
        session: of the run; its settings name the teacher, and a resumed run must have the same.
        chat: the student's tokenizer, which is the teacher's.
        devices: where models are and what they multiply in.
        student: the policy.

    Returns:
        None where nothing is distilled.

    Raises:
        ConfigError: as of `load_causal_lm`; or the architecture's head is not known here.
    """
    config = session.config
    if config.distill.teacher is None:
        return None
    source = config.distill.teacher
    with loading(config):
        model = load_causal_lm(source, attention=config.model.attention)
    policy = policy_of(model, config, chat)
    with layer_by_layer(policy):
        check_head(policy, longest=longest_sequence(model.config))
        packs(model, config.backend.packing)
    session.identify(teacher=weights_digest(model))  # in no checkpoint
    session.note("teacher", f"{source}, {count_parameters(model) / 1e6:.1f} M parameters")
    placed = devices.frozen(TeacherPolicy(policy).requires_grad_(False))
    vocab_size = student.model.config.get_text_config().vocab_size
    is_sharded = devices.zero is not None and devices.zero.stage == 3
    return LoadedTeacher(
        scores=Teacher(placed, vocab_size, device=devices.device, autocast=devices.autocast),
        policy=policy,
        weights="sharded" if is_sharded else "shared",
        writes=config.distill.method == "sft_kd",
        source=source,
    )


def rollout_generator(
    teacher: LoadedTeacher | None, own: Generator, make: Callable[..., Generator]
) -> Generator:
    """Return what writes rollouts: the student's own generator, or one of the teacher.

    Args:
        teacher: of the run, if any.
        own: the student's.
        make: makes a generator of a model, `cached` or not.
    """
    if teacher is None or not teacher.writes:
        return own
    cached = check_rows(teacher.source)
    if cached is None:
        with layer_by_layer(teacher.policy):
            cached = keeps_cache(teacher.policy.model, teacher.source)
    return make(GenerationModel(policy=teacher.policy, weights=teacher.weights), cached=cached)


@final
class TeacherWriter:
    """The teacher as what writes: an actor whose weights never change."""

    policy_version = 0

    def __init__(self, policy: CausalPolicy) -> None:
        self._policy = policy

    @property
    def policy_module(self) -> nn.Module:
        """The bare teacher."""
        return self._policy

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the teacher's (name, tensor)."""
        for name, weight in self._policy.named_parameters():
            yield name, weight.detach()

    def logprobs(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Refuse: nothing depends on what the teacher makes of its own actions [B, T]."""
        raise NotImplementedError

    def values(self, inputs: Inputs) -> Tensor | None:
        """Return None: there is no critic."""
        del inputs
