"""The models of a run without weights: built from a configuration, on fake tensors.

Where `model.path` is not there to be read, `model.config` or `model.dimensions` describe it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from trainers.config import Config, ModelConfig
from trainers.errors import ConfigError
from trainers.generation.probe import check_described, check_rows
from trainers.models.adapters import adapt
from trainers.models.critic import Critic, value_width
from trainers.models.critic_folders import critic_outline
from trainers.models.hub import loading_message
from trainers.models.loading import (
    VOCAB_SIZES,
    check_context,
    count_parameters,
    llama_config,
    load_config,
    without_dropout,
)
from trainers.models.saving import check_savable

NEEDED = ("hidden_size", "intermediate_size", "num_layers", "num_heads")
HOW = (
    "To plan without it, give its config.json: --model.config FILE\n"
    "or its sizes: --model.vocab-size N "
    + " ".join(f"--model.dimensions.{name.replace('_', '-')} N" for name in NEEDED)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The models of a text run, all fake.

    Attributes:
        mode: the mode their tensors belong to.
        policy: the causal language model.
        critic: the separate critic; None where the trunk is shared, and without a critic.
        source: where the sizes come from, in words.
        cached: False where every token of a response reads its whole row again.
        has_critic: False where no value is read, `ppo.critic none`.
    """

    mode: FakeTensorMode
    policy: PreTrainedModel
    critic: Critic | None
    source: str
    cached: bool = True
    has_critic: bool = True

    @property
    def num_policy(self) -> int:
        """Parameters of the policy, its value head included where it has one."""
        has_head = self.has_critic and self.critic is None
        head = value_width(self.policy) + 1 if has_head else 0
        return count_parameters(self.policy) + head

    @property
    def num_learned(self) -> dict[str, int]:
        """How many of them learn, by role; with adapters most do not."""
        heads = self.num_policy - count_parameters(self.policy)
        counts = {"policy": _learned(self.policy) + heads}
        return counts if self.critic is None else counts | {"critic": _learned(self.critic)}

    @property
    def num_critic(self) -> int:
        """Parameters of a separate critic; 0 where there is none."""
        return 0 if self.critic is None else count_parameters(self.critic)

    @property
    def num_reference(self) -> int:
        """Parameters of a copy of the policy."""
        return count_parameters(self.policy)


def model_config(model: ModelConfig) -> tuple[PretrainedConfig, str]:
    """Return the configuration of a run's model, and where it comes from.

    Raises:
        ConfigError: it cannot be read and is not described, or the description does not read.
    """
    if model.path is None:
        vocab_size = model.vocab_size or VOCAB_SIZES[model.preset]
        has_sizes = any(getattr(model.dimensions, name) for name in NEEDED)
        return llama_config(model, vocab_size), "sizes given" if has_sizes else model.preset
    if model.config is not None:
        return _from_file(model.config), f"{model.path}, by {model.config}"
    sizes = [name for name in NEEDED if getattr(model.dimensions, name)]
    if not sizes:
        try:
            return load_config(model.path), model.path
        except ConfigError as error:
            raise ConfigError(f"{error}\n{HOW}") from error
    missing = [f"model.dimensions.{name}" for name in NEEDED if name not in sizes]
    missing += [] if model.vocab_size else ["model.vocab_size"]
    if missing:
        raise ConfigError(
            f"model.dimensions describe {model.path} in part; missing: {', '.join(missing)}.\n{HOW}"
        )
    return llama_config(model, model.vocab_size or 0), f"{model.path}, by model.dimensions"


def _from_file(name: str) -> PretrainedConfig:
    if not Path(name).is_file():
        raise ConfigError(f"model.config {name} does not exist or is no file.")
    try:
        return without_dropout(AutoConfig.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.config {name} is no model's config.json: {error}") from error


def shapes_of(config: Config, weights: torch.dtype = torch.float32) -> Shapes:
    """Build the fake models of a text run.

    Args:
        config: of the run.
        weights: the type of what is computed with.

    Raises:
        ConfigError: as of `model_config` and `check_savable`; or prompts and responses do not fit
            the context.
    """
    described, source = model_config(config.model)
    if config.ppo.num_iterations and "model.dimensions" not in source:
        limits = config.generation.max_prompt_tokens, config.generation.max_new_tokens
        check_context(described, *limits)
    cached = _cached(config.model, described, source)
    # One that is not installed here, such as flash_attention_2, takes no more than sdpa does.
    kernel = {"auto": None, "eager": "eager"}.get(config.model.attention, "sdpa")
    mode = FakeTensorMode()
    with mode:
        try:
            policy = AutoModelForCausalLM.from_config(
                described, attn_implementation=kernel, dtype=weights
            ).train()
        except ValueError as error:
            raise ConfigError(loading_message(source, error)) from error
        critic = _critic(config, policy)
        with_head = config.ppo.num_iterations and config.ppo.has_critic
        learns = critic or (critic_outline(policy, "policy") if with_head else None)
    check_savable(policy, learns)
    lora = config.model.lora
    for model in (policy, critic if lora.critic == "adapters" else None):
        if lora.rank and model is not None:
            adapt(model, lora, seed=0, empty=True)
            _fill(model, mode, weights)
    return Shapes(
        mode=mode,
        policy=policy,
        critic=critic,
        source=source,
        cached=cached,
        has_critic=config.ppo.has_critic,
    )


def _cached(model: ModelConfig, described: PretrainedConfig, source: str) -> bool:
    """Tell whether responses are written with a cache; of sizes alone a Llama is made."""
    if source == model.path:
        return check_rows(source) is not False
    return model.config is None or check_described(described, source) is not False


def _fill(model: nn.Module, mode: FakeTensorMode, weights: torch.dtype) -> None:
    """Make fake what peft left on the device meta: it cannot move what is fake."""
    for layer in model.modules():
        for name, weight in layer.named_parameters(recurse=False):
            if weight.is_meta:
                with mode:
                    setattr(layer, name, nn.Parameter(torch.empty(weight.shape, dtype=weights)))


def _learned(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _critic(config: Config, policy: PreTrainedModel) -> Critic | None:
    if config.ppo.critic != "separate" or not config.ppo.num_iterations:
        return None
    reads = config.ppo.critic_reads_logprobs
    return critic_outline(policy, config.ppo.critic_init, reads_logprobs=reads).train()
