"""Reward models: any sequence classifier of transformers, with one class per label or one score.

Shapes: B rows, L tokens, K labels. Rows are padded on the right with the pad token, by which many
families find the last token, where they read their answer.
"""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llmgym.chat_templates import EndlessTemplateError
from llmgym.rewards.context import longest_sequence
from llmgym.rewards.rendering import check_ends
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.models.chat import end_every_text
from trainers.models.gguf import read_model
from trainers.models.hub import loading_message
from trainers.models.loading import (
    check_vocabulary,
    dropout_off,
    load_config,
    load_tokenizer,
    new_weights,
)
from trainers.models.presets import llama_config


@final
class SequenceClassifier(nn.Module):
    """A sequence classifier as an engine holds it.

    Args:
        model: the bare transformers model, also for export.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits [B, K], float32, of `tokens` [B, L] under `attention_mask` [B, L]."""
        return self.model(input_ids=tokens, attention_mask=attention_mask.long()).logits.float()


def classifier_tokenizer(
    config: Config, texts: Iterable[str], *, has_prompts: bool
) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a reward model, padding on the right.

    Args:
        config: settings.
        texts: what a fresh one is trained on.
        has_prompts: False takes the chat template away, so that the folder says what was learned.

    Raises:
        ConfigError: there is none, it has no pad token, or its chat template does not end.
    """
    tokenizer = load_tokenizer(config, texts)
    name = config.tokenizer.path or config.model.path
    if name is None:
        end_every_text(tokenizer)
    if tokenizer.pad_token_id is None:
        end = tokenizer.eos_token
        hint = f", such as its end token: --tokenizer.pad-token '{end}'" if end else ""
        raise ConfigError(
            f"the tokenizer of {name} has no pad token, by which a classifier finds where a text "
            f"ends. Name a token that no text holds{hint or ' with --tokenizer.pad-token TOKEN'}."
        )
    tokenizer.padding_side = "right"
    if not has_prompts:
        tokenizer.chat_template = None
    try:
        check_ends(tokenizer)
    except EndlessTemplateError as error:
        raise ConfigError(
            f"{error}, that of {name}. Give one that ends: --tokenizer.chat-template FILE."
        ) from error
    return tokenizer


def classifier_context(config: Config, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the tokens that the reward model takes; its tokenizer may say less than the model."""
    if config.model.path is None:
        return config.model.context
    return min(longest_sequence(load_config(config.model.path)), tokenizer.model_max_length)


def load_classifier(
    config: Config, tokenizer: PreTrainedTokenizerFast, names: Sequence[str]
) -> tuple[SequenceClassifier, bool]:
    """Load a sequence classifier: float32, dropout off, in train mode.

    Args:
        config: settings.
        tokenizer: of `classifier_tokenizer`.
        names: of the classes; empty for one plain score.

    Returns:
        The model, and whether its head was there already. A new head is drawn by the run's seed;
        the global generator is untouched.

    Raises:
        ConfigError: it does not exist, is damaged, or its architecture classifies no sequences.
    """
    source = config.model.path
    if source is None:
        vocab_size = max(tokenizer.get_vocab().values()) + 1
        model_config = llama_config(config.model, vocab_size)
    else:
        model_config = load_config(source)
        check_vocabulary(tokenizer, model_config, config.tokenizer.path or source)
    before = model_config.num_labels
    _describe(model_config, tokenizer, names)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.run.seed)
        if source is None:
            return SequenceClassifier(LlamaForSequenceClassification(model_config).train()), False
        model, new = _loaded(source, model_config, config.model.attention)
    dropout_off(model)
    return SequenceClassifier(model.train()), before == model_config.num_labels and not new


def _describe(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, names: Sequence[str]
) -> None:
    """Write into a model's configuration what its labels and its padding are."""
    labels = list(names) or ["score"]
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification" if names else "regression"
    for held in {id(part): part for part in (config, config.get_text_config())}.values():
        held.pad_token_id = tokenizer.pad_token_id
        held.use_cache = False


def _loaded(source: str, config: PretrainedConfig, attention: str) -> tuple[PreTrainedModel, bool]:
    """Return the model, and whether any part of it is new."""
    chosen = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        kind = AutoModelForSequenceClassification
        model, report = read_model(kind, source, config=config, **chosen)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(loading_message(source, error)) from error
    return model, bool(new_weights(source, model, report))
