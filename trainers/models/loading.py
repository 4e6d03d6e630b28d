"""Models and tokenizers from a folder, a hub id, or nothing; errors come before weights.

Parameters are float32 whatever the file holds: the engines compute in bfloat16 by autocast.
Dropout is off, in the configuration and in every module. Code from a hub is never run.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llmgym.rewards.context import longest_sequence, rope_limit
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.models.causal_lm import CausalPolicy, check_head
from trainers.models.chat import ChatFormat, train_tokenizer
from trainers.models.critic import SharedActorCritic
from trainers.models.end_tokens import chat_that_ends
from trainers.models.gguf import is_gguf, load_pretrained, read_model, read_tokenizer
from trainers.models.hub import check_exists, check_model_files, check_weight_names, loading_message
from trainers.models.int8 import is_int8, read_int8
from trainers.models.packing import packs
from trainers.models.presets import VOCAB_SIZES, fresh_llama, llama_config
from trainers.models.shards import layer_by_layer, tie_head
from trainers.models.templates import template_of


def load_tokenizer(config: Config, texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the model or of `tokenizer.path`, or train one on `texts`.

    Raises:
        ConfigError: there is none, or it is not a fast one.
    """
    source = config.tokenizer.path or config.model.path
    if source is None:
        preset = config.model.preset
        tokenizer = train_tokenizer(texts, config.model.vocab_size or VOCAB_SIZES[preset])
    else:
        tokenizer = _existing_tokenizer(source)
    if (template := config.tokenizer.chat_template) is not None:
        name = source or f"the fresh {config.model.preset} model"
        tokenizer.chat_template = template_of(tokenizer, template, name)
    if (pad := config.tokenizer.pad_token) is not None:
        if pad not in tokenizer.get_vocab():
            raise ConfigError(f'tokenizer.pad_token "{pad}" is no token of the vocabulary.')
        tokenizer.pad_token = pad
    return tokenizer


def _existing_tokenizer(source: str) -> PreTrainedTokenizerFast:
    check_exists(source)
    missing = (
        f"{source} has no tokenizer. Copy tokenizer.json and tokenizer_config.json into it, or "
        "set tokenizer.path to a folder that has them."
    )
    folder = Path(source)
    if folder.is_dir() and not list(folder.glob("tokenizer*")):
        raise ConfigError(missing)
    try:
        if is_gguf(source):
            return read_tokenizer(source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError) as error:
        otherwise = None if is_gguf(source) else missing
        raise ConfigError(loading_message(source, error, otherwise=otherwise)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"the tokenizer of {source} is not a fast one (it has no tokenizer.json). Set "
            "tokenizer.path to one that is."
        )
    return tokenizer


def load_chat(config: Config, tokenizer: PreTrainedTokenizerFast, *, env: str) -> ChatFormat:
    """Return the chat format, with every end token that model, tokenizer and template name.

    Args:
        config: settings.
        tokenizer: of `load_tokenizer`.
        env: id of the environment, for the message.

    Raises:
        ConfigError: no chat template, one that does not end, no end token, end tokens without the
            template's, or more tokens than the model embeds.
    """
    source = config.model.path
    name = config.tokenizer.path or source or f"the fresh {config.model.preset} model"
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{name} has no chat template, but {env} gives messages. Use an instruct model, or "
            "--tokenizer.chat-template FILE. A base model takes --tokenizer.chat-template plain, "
            "which feeds a prompt as it is, or chatml."
        )
    model_config = None if source is None else load_config(source)
    if model_config is not None:
        check_vocabulary(tokenizer, model_config, name)
    return chat_that_ends(
        tokenizer,
        named=_named_ends(tokenizer, model_config, source),
        ids=config.generation.eos_token_ids,
        name=name,
        day=config.run.day,
    )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerFast, model_config: PretrainedConfig, name: str
) -> None:
    """Refuse a tokenizer with ids that the model does not embed.

    Raises:
        ConfigError: it has some.
    """
    largest = max(tokenizer.get_vocab().values())
    embedded = model_config.get_text_config().vocab_size
    if largest >= embedded:
        raise ConfigError(
            f"the tokenizer of {name} has ids up to {largest}, but the model embeds only "
            f"{embedded} tokens. Set tokenizer.path to the model's own tokenizer."
        )


def _named_ends(
    tokenizer: PreTrainedTokenizerFast, model_config: PretrainedConfig | None, source: str | None
) -> list[int]:
    named: list[Any] = [tokenizer.eos_token_id]
    if model_config is not None and source is not None:
        named += [model_config.get_text_config().eos_token_id]
        named += [_generation_config(source).eos_token_id]
    flat = [token_id for item in named for token_id in (item if isinstance(item, list) else [item])]
    return list(dict.fromkeys(int(token_id) for token_id in flat if token_id is not None))


def _generation_config(source: str) -> GenerationConfig:
    if is_gguf(source):  # its configuration names the end token
        return GenerationConfig()
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:  # a folder need not have one
        return GenerationConfig()


def load_config(source: str) -> PretrainedConfig:
    """Return a model's configuration, dropout off.

    Raises:
        ConfigError: there is no such model, or it needs code of its own.
    """
    check_model_files(source)
    try:
        config = load_pretrained(AutoConfig, source)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(loading_message(source, error)) from error
    return without_dropout(config)


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """Set every dropout and jitter of a configuration, and of those inside it, to 0; return it."""
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            without_dropout(value)
        elif isinstance(value, float) and any(
            word in name for word in ("dropout", "pdrop", "jitter")
        ):
            setattr(config, name, 0.0)
    return config


def dropout_off(model: nn.Module) -> None:
    """Set every dropout of a model to 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def load_causal_lm(source: str, *, attention: str = "auto") -> PreTrainedModel:
    """Load a causal language model: float32, dropout off, in train mode.

    One with int8 linear layers is in eval mode: it writes, and nothing of it learns.

    Args:
        source: a folder, a hub id, or a GGUF file.
        attention: kernel of the attention; "auto" leaves it to transformers.

    Raises:
        ConfigError: it does not exist, is damaged, is no causal language model, or its files lack
            weights of it or hold others.
    """
    config = load_config(source)
    if is_int8(source):
        return read_int8(source)
    chosen = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        model, report = read_model(AutoModelForCausalLM, source, config=config, **chosen)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(loading_message(source, error)) from error
    check_weight_names(source, missing=made_anew(report), unexpected=report["unexpected_keys"])
    tie_head(model, source)
    dropout_off(model)
    return model.train()


def policy_outline(config: PretrainedConfig, source: str) -> PreTrainedModel:
    """Return a causal language model with random weights, where tensors are made now.

    Raises:
        ConfigError: transformers has none for the configuration, that of `source`.
    """
    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        raise ConfigError(loading_message(source, error)) from error


def load_policy_model(
    config: Config, chat: ChatFormat, *, needs_room: bool = True
) -> PreTrainedModel:
    """Return the bare model of `model.path`, or a fresh one that fits the tokenizer.

    Args:
        config: settings.
        chat: the tokenizer in use.
        needs_room: refuse limits of `generation` that exceed its context, as training does. Where
            a person asks, or nothing is written, an answer ends at the context at the latest.

    Raises:
        ConfigError: as of `load_causal_lm`; or prompt and response do not fit its context.
    """
    limits = config.generation.max_prompt_tokens, config.generation.max_new_tokens
    if config.model.path is not None:
        if needs_room:
            check_context(load_config(config.model.path), *limits)
        return load_causal_lm(config.model.path, attention=config.model.attention)
    vocab_size = max(chat.tokenizer.get_vocab().values()) + 1
    model = fresh_llama(llama_config(config.model, vocab_size), config.run.seed)
    if needs_room:
        check_context(model.config, *limits)
    for held in (model.config, model.generation_config):
        held.eos_token_id = chat.end_token_id
        held.pad_token_id = chat.pad_token_id
    return model


def load_policy(config: Config, chat: ChatFormat) -> CausalPolicy | SharedActorCritic:
    """Return the text policy of a run, on a trunk shared with the critic where configured.

    Raises:
        ConfigError: as of `load_policy_model`; or the architecture's head is not known here.
    """
    if config.model.path is not None and is_int8(config.model.path):
        raise ConfigError(
            f"{config.model.path} holds int8 weights, which do not learn. Train the folder that it "
            "was made from, and export that again."
        )
    model = load_policy_model(config, chat)
    policy = policy_of(model, config, chat)
    with layer_by_layer(policy):
        check_head(policy, longest=longest_sequence(model.config))
        packs(model, config.backend.packing)
    if config.backend.gradient_checkpointing:
        enable_checkpointing(model)
    if config.ppo.critic != "shared":
        return policy
    scorer = policy.scorer
    return SharedActorCritic(
        model,
        temperature=scorer.temperature,
        chunk=scorer.chunk,
        absent=scorer.absent,
        reads_logprobs=config.ppo.critic_reads_logprobs,
    )


def policy_of(model: PreTrainedModel, config: Config, chat: ChatFormat) -> CausalPolicy:
    """Return a policy that samples and scores as `generation` says."""
    size = model.config.get_text_config().vocab_size
    return CausalPolicy(
        model,
        temperature=config.generation.temperature,
        chunk=config.backend.logprob_chunk,
        absent=chat.unknown_ids(size) if config.generation.mask_unknown else (),
    )


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass."""
    with warnings.catch_warnings():  # renamed; all of >=5.5 know the old name
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def new_weights(source: str, model: PreTrainedModel, report: Mapping[str, Any]) -> set[str]:
    """Return the names of a classifier's weights that no file held: those of its head, if any.

    Args:
        source: where it was loaded from.
        model: as loaded.
        report: what transformers said of it.

    Raises:
        ConfigError: there are some in its body.
    """
    new = made_anew(report)
    body = f"{model.base_model_prefix}."
    check_weight_names(source, missing=[key for key in new if key.startswith(body)], unexpected=[])
    return new


def made_anew(report: Mapping[str, Any]) -> set[str]:
    """Return the names of weights that no file held in their shape, by transformers' report."""
    return {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}


def check_context(config: PretrainedConfig, max_prompt_tokens: int, max_new_tokens: int) -> None:
    """Refuse prompts and responses that together do not fit the model.

    Raises:
        ConfigError: they do not.
    """
    context = longest_sequence(config)
    total = max_prompt_tokens + max_new_tokens
    if total <= context:
        return
    message = (
        f"generation.max_prompt_tokens {max_prompt_tokens} + generation.max_new_tokens "
        f"{max_new_tokens} = {total} exceeds "
    )
    if context == rope_limit(config):
        raise ConfigError(
            f"{message}{context} tokens, beyond which this model's RoPE depends on the longest row "
            "of a batch: a response's log-probabilities would change with the rows beside it. "
            "Lower one of them."
        )
    raise ConfigError(
        f"{message}the model's context of {context} tokens. Lower one of them, or raise "
        "model.context for a fresh model."
    )


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
