"""int8 linear layers: a scale per row of the weights, and one of the activations as they come.

    y = s_x s_w (q_x - z_x) q_w + b,    q_w in [-127, 127],  s_w = max |w| / 127 of its row

Activations have a scale per token. The kernel has one per call, so the tokens of a call are divided
by their largest number first: the first token of SmolLM2-135M-Instruct has activations 1,000 times
those of others, and one scale for 256 tokens moves its predictions by 0.5 nats per token, scales
per token by 0.05.

The kernel is FBGEMM's, which torch has for x86. On an AMD EPYC with AVX512-VNNI and one thread
(torch 2.13) a product of one token with 384 to 1,536 rows took 0.2 to 0.35 of its time in float32,
oneDNN's 0.5 to 0.8, and the weight-only kernel of bfloat16 0.15 to 0.6, but 1.0 for 64 tokens,
where FBGEMM's took 0.25.

A folder holds int8 `weight` and `weight_scale` as the format compressed-tensors has them, so that
vLLM reads it too. Tied embeddings are in it once; the head is quantized from them as it is loaded.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, final

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from trainers.errors import ConfigError

INT8_KERNEL = "fbgemm"
INT8_FORMAT = "int-quantized"
SCALE = "_scale"
HEAD = "int8_head"
"""Key of config.json: the head computes in int8 too."""
LARGEST = 127


def check_int8() -> None:
    """Refuse a processor without the kernels.

    Raises:
        ConfigError: torch has none for it.
    """
    if INT8_KERNEL not in torch.backends.quantized.supported_engines:
        raise ConfigError(
            f"this build of torch has no int8 kernels for this processor: {INT8_KERNEL} needs x86 "
            "with AVX2. Serve the model as GGUF instead: llmgym export MODEL --to gguf --out FILE"
        )


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 [O, I] and the scale [O] of each row of `weight` [O, I]; a row of zeros has 1."""
    largest = weight.float().abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    numbers = (weight.float() / scale[:, None]).round().clamp(-LARGEST, LARGEST)
    return numbers.to(torch.int8), scale


@contextmanager
def _kernel() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = INT8_KERNEL
    try:
        with warnings.catch_warnings():  # torch 2.13 announces the end of its quantized tensors
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = before


@final
class Int8Linear(nn.Module):
    """A linear layer with int8 weights; it computes and does not learn.

    Args:
        numbers: [O, I] int8.
        scale: [O] float32, of each row.
        bias: [O], or None.
    """

    def __init__(self, numbers: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = numbers.shape
        # Without VNNI two products are added in 16 bits, which 8-bit activations overflow.
        capabilities = torch.cpu.get_capabilities()
        self._reduces = not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        self._bias = None if bias is None else bias.detach().float()
        with _kernel():
            weight = cast(Any, torch)._make_per_channel_quantized_tensor(
                numbers, scale.float(), zeros, 0
            )
            self._packed = torch.ops.quantized.linear_prepack(weight, None)

    def forward(self, states: Tensor) -> Tensor:
        """Return [..., O] of states [..., I], in their type."""
        flat = states.float().reshape(-1, self.in_features)
        if flat.shape[0] == 1:
            made = self._product(flat)
        else:
            largest = flat.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(flat.dtype).tiny)
            made = self._product(flat / largest).mul_(largest)
        if self._bias is not None:
            made += self._bias
        return made.reshape(*states.shape[:-1], self.out_features).to(states.dtype)

    def _product(self, states: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(states, self._packed, self._reduces)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return int8 [O, I] and the scale [O] of each row."""
        weight, _ = torch.ops.quantized.linear_unpack(self._packed)
        return weight.int_repr(), weight.q_per_channel_scales().float()

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.in_features}, {self.out_features}"


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the linear layers of the body by name; the head is not among them.

    Raises:
        ConfigError: the model has none.
    """
    head = model.get_output_embeddings()
    layers = {
        name: part
        for name, part in model.named_modules()
        if type(part) is nn.Linear and part is not head
    }
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no plain linear layers, so none can be int8. Models of "
            "the families of Llama, Mistral, Qwen2 and Qwen3 have."
        )
    return layers


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of this name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def quantize_model(model: PreTrainedModel, *, head: bool = True) -> PreTrainedModel:
    """Replace a model's linear layers, and its head, by int8 ones; return it, in eval mode.

    Args:
        model: float32, on the CPU; it is changed.
        head: the head too; the embedding stays as it is.

    Raises:
        ConfigError: the processor has no kernels, or the model no linear layers.
    """
    check_int8()
    layers = linear_layers(model)
    for name, layer in layers.items():
        replace_layer(model, name, Int8Linear(*quantize_rows(layer.weight.detach()), layer.bias))
    if head:
        quantize_head(model)
    return model.eval()


def quantize_head(model: PreTrainedModel) -> None:
    """Replace the head by an int8 one; the embedding that it may be tied to stays."""
    layer = cast(nn.Linear, model.get_output_embeddings())
    name = next(name for name, part in model.named_modules() if part is layer)
    replace_layer(model, name, Int8Linear(*quantize_rows(layer.weight.detach()), layer.bias))


def quantization_config() -> dict[str, Any]:
    """Return what config.json says of the weights, as the package compressed-tensors has it."""
    number = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**number, "strategy": "channel", "dynamic": False},
        "input_activations": {**number, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": INT8_FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def is_int8(source: str) -> bool:
    """Tell whether a model is a folder of int8 weights."""
    file = Path(source) / "config.json"
    if not file.is_file():
        return False
    try:
        described = json.loads(file.read_text("utf-8")).get("quantization_config") or {}
    except (ValueError, AttributeError):  # the loader names what is wrong with it
        return False
    return described.get("format") == INT8_FORMAT


def read_int8(source: str) -> PreTrainedModel:
    """Return the model of a folder of int8 weights, in eval mode: it writes and does not learn.

    Raises:
        ConfigError: the processor has no kernels, or weights are missing or left over.
    """
    check_int8()
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    vars(config).pop("quantization_config", None)
    with safe_open(Path(source) / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = _outline(config)
    for name, layer in linear_layers(model).items():
        weight, scale = (tensors.pop(f"{name}.weight{end}", None) for end in ("", SCALE))
        bias = tensors.pop(f"{name}.bias", None)
        if weight is None or scale is None or weight.shape != layer.weight.shape:
            raise ConfigError(
                f"{source} lacks the int8 weight of {name}, or it has another shape. Export it "
                "again: llmgym export MODEL --to int8 --out DIR"
            )
        replace_layer(model, name, Int8Linear(weight, scale.flatten(), bias))
    _load_rest(model, tensors, source)
    if getattr(config, HEAD, False):
        quantize_head(model)
    model.requires_grad_(False)
    return model.eval()


def _outline(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model without weights, its other buffers as they are computed."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, part in list(model.named_modules()):
        if any(buffer.is_meta for buffer in part.buffers(recurse=False)):
            replace_layer(model, name, type(part)(config=config))
    return model


def _load_rest(model: PreTrainedModel, tensors: dict[str, Tensor], source: str) -> None:
    """Put in the tensors that are not int8."""
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(floats, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, weight in model.named_parameters() if weight.is_meta]
    if missing or unexpected:
        raise ConfigError(
            f"{source} lacks {', '.join(missing[:3]) or 'nothing'}, and holds "
            f"{', '.join(unexpected[:3]) or 'nothing'} that the model has no place for. Export it "
            "again: llmgym export MODEL --to int8 --out DIR"
        )
