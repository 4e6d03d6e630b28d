"""LoRA, by peft, which only this file imports: two thin matrices for each frozen weight.

    y = W x + b + (alpha / rank) B A x        A [r, D_in] random, B [D_out, r] zero at the start

A and B learn, and a value or score head; all else stays as it was loaded. With adapters off the
model is the base to the last bit, which is PPO's reference: there is no second copy of it. Layers
of the body are adapted, never embeddings or the head over the vocabulary.

Source: Hu et al. 2021, arXiv:2106.09685, eq. 3.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainers.config import Config, LoRAConfig
from trainers.errors import BackendError, ConfigError
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic import Critic, SharedActorCritic
from trainers.models.hub import loading_message
from trainers.models.loading import llama_config, load_config

ADAPTER_NAME = "default"
"""What peft calls the adapters of a model that has one set of them."""


def import_peft() -> Any:  # noqa: ANN401 - the module
    """Import peft.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise BackendError(
            f"model.lora needs the package peft ({error}).\n"
            'Install it with pip install "llmgym-rl[train,peft]", or set --model.lora.rank 0'
        ) from error
    return peft


def check_lora(config: Config) -> None:
    """Refuse a fresh model, and layers that a model does not have, before weights load.

    Raises:
        BackendError: peft is not installed.
        ConfigError: what is adapted has learned nothing before, or a target matches no layer of
            the policy, or of the critic that is loaded.
    """
    model, ppo = config.model, config.ppo
    if not model.lora.rank:
        return
    import_peft()
    if model.path is None and not (config.sft.num_epochs and ppo.num_iterations):
        raise ConfigError(
            f"model.lora.rank {model.lora.rank} adapts a model that exists, and this run begins "
            "with a fresh one, whose every weight has to learn. Set --model.path to a model, or "
            "--model.lora.rank 0. Before PPO a fresh one can learn demonstrations whole: "
            "--sft.num-epochs 1 or more."
        )
    if model.path is None:
        model_config = llama_config(model, 300)
        _targets(_outline(f"the fresh {model.preset} model", model_config), model.lora)
    else:
        _targets(_outline(model.path, load_config(model.path)), model.lora)
    if ppo.critic == "separate" and ppo.critic_init != "policy" and model.lora.critic == "adapters":
        _targets(_outline(ppo.critic_init, load_config(ppo.critic_init)), model.lora)


def _outline(source: str, config: PretrainedConfig) -> PreTrainedModel:
    """Return a body without weights."""
    try:
        with torch.device("meta"):
            return AutoModel.from_config(config)
    except ValueError as error:
        raise ConfigError(loading_message(source, error)) from error


def _targets(body: PreTrainedModel, lora: LoRAConfig) -> list[str]:
    """Return the ends of the names of the layers that are adapted.

    Raises:
        ConfigError: one matches no linear layer, or peft knows no usual ones of this family.
    """
    family = body.config.model_type
    linear = [name for name, layer in body.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    ends = sorted({name.rpartition(".")[2] for name in linear})
    if lora.targets == ["all-linear"]:
        return ends
    targets = lora.targets
    if lora.targets == ["auto"]:
        targets = import_peft().utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(family)
        if targets is None:
            raise ConfigError(
                f"model.lora.targets auto: peft names no layers for {family}. Set "
                f"--model.lora.targets all-linear, or name some of {', '.join(ends)}."
            )
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            near = difflib.get_close_matches(target, ends, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"model.lora.targets {target} matches no linear layer of the body of {family}, "
                f"whose are named {', '.join(ends)}.{hint} all-linear takes all of them."
            )
    return list(targets)


def adapt(
    model: PreTrainedModel | Critic, lora: LoRAConfig, *, seed: int, empty: bool = False
) -> None:
    """Freeze a model's body, and its head over the vocabulary, and add adapters to its layers.

    The head of a critic and of a classifier learns.

    The model computes what it did before, to the last bit. A and B are drawn by `seed`; the global
    generator is untouched. Where they are to be `empty`, they are on the device meta.

    Raises:
        ConfigError: a target matches no layer.
    """
    peft, body = import_peft(), model.trunk if isinstance(model, Critic) else model.base_model
    assert isinstance(body, PreTrainedModel)
    targets = _targets(body, lora)
    if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
        model.requires_grad_(False)
    turned = any(isinstance(layer, Conv1D) for layer in body.modules())
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, fan_in_fan_out=turned
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        peft.inject_adapter_in_model(settings, body, ADAPTER_NAME, low_cpu_mem_usage=empty)


def has_adapters(module: nn.Module) -> bool:
    """Tell whether a module was adapted."""
    return next(_adapted(module), None) is not None


def _adapted(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, layer) of each layer with adapters."""
    for name, layer in module.named_modules():
        if "lora_A" in vars(layer).get("_modules", {}):
            yield name, layer


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Let a module compute what its base does."""
    layers = [layer for _, layer in _adapted(module)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of `module`, by plain names, with adapters added to what they adapt.

    Args:
        module: says which layers are adapted, and how much; its own weights are not read.
        weights: all of them, by name; they are not changed.
    """
    return dict(merged_one_by_one(module, weights.items()))


def merged_one_by_one(
    module: nn.Module, weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of `module`, by plain names, with adapters added to what they adapt.

    In float32, and then in the type of what is adapted. Only the parts of layers whose other parts
    have not come yet are held.

    Args:
        module: as of `merged_weights`.
        weights: (name, tensor) one at a time, each valid until the next.
    """
    layers = dict(_adapted(module))
    ends = {"base_layer.weight": "base"} | {f"lora_{x}.{ADAPTER_NAME}.weight": x for x in "AB"}
    places = {f"{name}.{end}": (name, part) for name in layers for end, part in ends.items()}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        if name not in places:
            yield name.replace(".base_layer.", "."), tensor
            continue
        owner, part = places[name]
        known = parts.setdefault(owner, {})
        known[part] = tensor.detach().clone()
        if len(known) == len(ends):
            yield f"{owner}.weight", _merged(layers[owner], parts.pop(owner))
    assert not parts, f"not all weights came for {next(iter(parts))}"


def _merged(layer: Any, parts: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401 - a layer of peft
    before, down, up = (parts[part] for part in ("base", "A", "B"))
    change = layer.scaling[ADAPTER_NAME] * (up.float() @ down.float())
    after = before.float() + (change.T if layer.fan_in_fan_out else change)
    return after.to(before.dtype)


def plain_names(module: nn.Module) -> list[str]:
    """Return the names of the weights of `module` without adapters."""
    names = [name for name, _ in module.named_parameters()]
    adapters = {
        f"{name}.lora_{x}.{ADAPTER_NAME}.weight" for name, _ in _adapted(module) for x in "AB"
    }
    return [name.replace(".base_layer.", ".") for name in names if name not in adapters]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The adapters of a base, as peft keeps them in a folder.

    Attributes:
        settings: peft's own.
        tensors: by peft's names.
    """

    settings: Any
    tensors: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        """Write a folder that `PeftModel.from_pretrained(base, folder)` loads."""
        self.settings.save_pretrained(folder)
        save_file(dict(self.tensors), folder / "adapter_model.safetensors", {"format": "pt"})


def adapter_of(
    policy: CausalPolicy | SharedActorCritic, weights: Mapping[str, Tensor], base: str | None
) -> Adapter:
    """Return the adapters of a policy.

    Args:
        policy: what was adapted; its own weights are not read.
        weights: those that learn, by their names in `policy`.
        base: the model they belong to: a folder or hub id.
    """
    settings = deepcopy(vars(policy.model.base_model)["peft_config"][ADAPTER_NAME])
    settings.task_type, settings.base_model_name_or_path = "CAUSAL_LM", base
    settings.inference_mode = True
    tensors = {
        f"base_model.{name.replace(f'.{ADAPTER_NAME}.', '.')}": tensor.contiguous()
        for name, tensor in weights.items()
        if ".lora_" in name
    }
    return Adapter(settings=settings, tensors=tensors)
