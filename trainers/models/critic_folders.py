"""Critics as folders: written for plain transformers, and read back.

A folder is a token classifier with one label where transformers has such a class for the family.
Elsewhere it is the plain trunk, which `AutoModel` loads, and two files beside it:

    value_head.safetensors   weight [1, D] and bias [1], float32
    value_head.json          {"input": "last_hidden_state", "width": D}

    values [B, L] = weight . last_hidden_state [B, L, D] + bias

A head that reads log-probabilities is such a file in every family, with a weight [1, D + 4]:

    {"input": "last_hidden_state, surprisal", "width": D}
"""

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file

from trainers.errors import ConfigError
from trainers.models.causal_lm import body_of
from trainers.models.critic import (
    NUM_SURPRISALS,
    Critic,
    ValueHead,
    classifier_of,
    head_name,
    name_of_head,
    value_width,
)
from trainers.models.hub import check_weight_names, loading_message
from trainers.models.loading import (
    dropout_off,
    enable_checkpointing,
    load_config,
    longest_sequence,
    made_anew,
    new_weights,
    policy_outline,
)
from trainers.models.saving import save_model
from trainers.models.shards import gather_layer

VALUE_HEAD = "value_head.json"
HEAD_WEIGHTS = "value_head.safetensors"
FolderKind = Literal["classifier", "head", "surprisal"]
IF_THERE: Any = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}
CLASSIFIERS = (
    (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
)
"""What holds a score head, the critic's own class first."""


def save_critic(folder: Path, trunk: PreTrainedModel, head: ValueHead) -> FolderKind:
    """Write a trunk and its value head into a folder that exists.

    Returns:
        The kind: a token classifier, or a trunk with a head file; `surprisal` where the head reads
        log-probabilities.

    Raises:
        OSError: it cannot be written.
        CheckpointError: transformers does not save it.
    """
    model = classifier_of(trunk, head)
    if model is not None:
        save_model(model, folder)
        return "classifier"
    architectures = trunk.config.architectures  # the policy's, where both have one configuration
    save_model(trunk, folder)
    trunk.config.architectures = architectures
    tensors = {name: value.detach().float().cpu() for name, value in head.state_dict().items()}
    save_file(tensors, folder / HEAD_WEIGHTS, {"format": "pt"})
    read = "last_hidden_state, surprisal" if head.reads_logprobs else "last_hidden_state"
    described = {"input": read, "width": head.width}
    (folder / VALUE_HEAD).write_text(json.dumps(described) + "\n", encoding="utf-8")
    return "surprisal" if head.reads_logprobs else "head"


def build_critic(
    policy_model: PreTrainedModel,
    init: str = "policy",
    *,
    gradient_checkpointing: bool = False,
    reads_logprobs: bool = False,
) -> Critic:
    """Build a separate critic.

    Args:
        policy_model: the policy's bare model.
        init: "policy" copies its trunk and V = 0; else a model folder, whose one-label score head
            or head file is taken over.
        gradient_checkpointing: recompute activations; a copied trunk does if the policy's does.
        reads_logprobs: the head reads `surprisal` as well, with zeros where the folder's does not.

    Raises:
        ConfigError: the folder does not load, or its head reads log-probabilities unasked.
    """
    if init == "policy":
        trunk = copy.deepcopy(body_of(policy_model))
        width = value_width(policy_model)
        head = ValueHead(width, policy_model.device, reads_logprobs=reads_logprobs)
    else:
        trunk, head = _load_critic(init, reads_logprobs=reads_logprobs)
    critic = Critic(trunk, head, name_of_head(trunk))
    dropout_off(critic)
    if gradient_checkpointing:
        enable_checkpointing(critic.trunk)
    return critic.train()


def critic_outline(
    policy_model: PreTrainedModel, init: str, *, reads_logprobs: bool = False
) -> Critic:
    """Return what `build_critic` does, for a policy without weights: no file of weights is read.

    Raises:
        ConfigError: transformers has no such trunk, or the folder's head file does not fit.
    """
    dtype, file = policy_model.dtype, None
    if init == "policy":
        body, width = body_of(policy_model), value_width(policy_model)
        trunk = _outline(body.config, type(body).__name__, dtype)
        if type(trunk) is not type(body):
            raise ConfigError(
                f"transformers' AutoModel makes {type(trunk).__name__} where this model has "
                f"{type(body).__name__}, so that its critic could not be loaded again. Choose a "
                "model of another family."
            )
    else:
        config = load_config(init)
        trunk, width = _outline(config, init, dtype), _width(config, init)
        file = head_file(init)
    if file is not None:
        read_head(file, width, reads_logprobs=reads_logprobs)
    return Critic(trunk, ValueHead(width, policy_model.device, reads_logprobs=reads_logprobs))


def check_critic(critic: Critic, policy_model: PreTrainedModel, init: str, length: int) -> None:
    """Refuse a critic's folder that does not take what the policy writes.

    Args:
        critic: of `critic_outline`.
        policy_model: the policy without weights.
        init: the folder, for the message.
        length: most tokens of prompt and response together.

    Raises:
        ConfigError: it embeds fewer tokens, or its context is shorter.
    """
    mine, policy = (model.config.get_text_config() for model in (critic.trunk, policy_model))
    context = longest_sequence(critic.trunk.config)
    if mine.vocab_size >= policy.vocab_size and context >= length:
        return
    raise ConfigError(
        f"ppo.critic_init {init} embeds {mine.vocab_size} tokens and takes {context} at once; the "
        f"policy has {policy.vocab_size}, and prompt and response up to {length}. Name a critic of "
        "the same tokenizer and context, or set ppo.critic_init policy."
    )


def _outline(config: PretrainedConfig, source: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return a trunk with random weights, where tensors are made now."""
    try:
        return AutoModel.from_config(config, dtype=dtype)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"transformers has no AutoModel for {source}: {error}") from error


def _width(config: PretrainedConfig, source: str) -> int:
    """Return D of the hidden states of a folder's model."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config.get_text_config().hidden_size
    with torch.device("meta"):
        return value_width(policy_outline(config, source))


def _load_critic(source: str, *, reads_logprobs: bool) -> tuple[PreTrainedModel, ValueHead]:
    config = load_config(source)
    width, file = _width(config, source), head_file(source)
    known = [auto for auto, mapping in CLASSIFIERS if type(config) in mapping]
    if file is not None or not known:
        trunk, report = _read(AutoModel, source, config)
        check_weight_names(source, missing=made_anew(report), unexpected=[])
        head = ValueHead(width, trunk.device, reads_logprobs=reads_logprobs)
        if file is not None:
            head.load_state_dict(read_head(file, width, reads_logprobs=reads_logprobs))
        return trunk, head
    return _from_classifier(known[0], source, config, width, reads_logprobs=reads_logprobs)


def _from_classifier(
    auto: Any,  # noqa: ANN401
    source: str,
    config: PretrainedConfig,
    width: int,
    *,
    reads_logprobs: bool,
) -> tuple[PreTrainedModel, ValueHead]:
    """Take trunk and score head of a classifier's folder; a head that is not there is zero."""
    labels, config.num_labels = config.num_labels, 1
    config.classifier_dropout = 0.0
    with torch.device("meta"):
        name = head_name(auto.from_config(config))
    assert name is not None, f"{source}: one linear head"
    model, report = _read(
        auto,
        source,
        config,
        ignore_mismatched_sizes=labels != 1,
        key_mapping={r"^(score|classifier)\.": f"{name}."},
    )
    new = new_weights(source, model, report)
    layer = model.get_submodule(name)
    gather_layer(layer)
    head = ValueHead(width, model.device, reads_logprobs=reads_logprobs)
    for key, value in layer.state_dict(prefix=f"{name}.").items():
        if key not in new and f"{name}.weight" not in new:
            head.get_parameter(key.removeprefix(f"{name}.")).data[..., : value.shape[-1]] = value
    return model.base_model, head


def _read(auto: Any, source: str, config: PretrainedConfig, **options: Any) -> tuple[Any, Any]:  # noqa: ANN401
    try:
        return auto.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(loading_message(source, error)) from error


def head_file(source: str) -> Path | None:
    """Return where the head file of a folder or hub id is; None where it has none."""
    if cached_file(source, VALUE_HEAD, **IF_THERE) is None:
        return None
    weights = cached_file(source, HEAD_WEIGHTS, **IF_THERE)
    if weights is None:
        raise ConfigError(
            f"{source} has {VALUE_HEAD} and no {HEAD_WEIGHTS}. Copy the folder again."
        )
    return Path(weights)


def read_head(file: Path, width: int, *, reads_logprobs: bool = False) -> dict[str, torch.Tensor]:
    """Return the weight [1, D], or [1, D + 4] with `reads_logprobs`, and bias [1] of a head file.

    Raises:
        ConfigError: it is damaged, does not fit a trunk of this width, or reads log-probabilities
            unasked.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} is damaged: {error}. Copy the folder again.") from error
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    expected = {"weight": [1, width], "bias": [1]}
    wider = {"weight": [1, width + NUM_SURPRISALS], "bias": [1]}
    if shapes == wider and not reads_logprobs:
        raise ConfigError(
            f"{file} is of a critic that reads log-probabilities. Set ppo.critic_reads_logprobs "
            "true, or ppo.critic_init policy."
        )
    if shapes == expected and reads_logprobs:
        tensors["weight"] = nn.functional.pad(tensors["weight"], (0, NUM_SURPRISALS))
        shapes = wider
    expected = wider if reads_logprobs else expected
    if shapes != expected:
        raise ConfigError(
            f"{file} holds {shapes}, and its trunk needs {expected}. Copy the folder again, or set "
            "ppo.critic_init policy."
        )
    return {name: value.float() for name, value in tensors.items()}
