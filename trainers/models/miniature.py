"""A model of the same architecture with a few thousand random weights, to try the architecture on.

Its configuration is the real one with every size made small: widths, heads, experts, windows and
lengths, and two layers of each type. What it computes with is the same code.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from trainers.errors import ConfigError
from trainers.models.loading import dropout_off, without_dropout

VOCAB, HIDDEN_SIZE, ATTENTION_WINDOW, CONTEXT = 64, 32, 8, 64
MAX_PARAMETERS = 5_000_000
"""Beyond it some size is not known here, and the model is no miniature."""

_NAMES = {
    CONTEXT: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length "
    "context_length vocab_size vocab_size_per_layer_input mamba_d_ssm",
    48: "intermediate_size n_inner ffn_dim ffn_hidden_size dff dim_ff d_inner "
    "intermediate_size_mlp dense_intermediate_size encoder_ffn_dim decoder_ffn_dim",
    HIDDEN_SIZE: "hidden_size d_model n_embd embedding_size embedding_dim lru_width "
    "word_embed_proj_dim router_hidden_size ple_embed_dim index_n_heads",
    16: "original_max_position_embeddings moe_intermediate_size shared_expert_intermediate_size "
    "shared_intermediate_size shared_experts_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size expert_intermediate_size q_lora_rank kv_lora_rank "
    "o_lora_rank hc_lowrank gated_norm_rank qk_head_dim",
    8: "head_dim dim_head d_kv swa_head_dim global_head_dim swa_v_head_dim d_head v_head_dim "
    "qk_nope_head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim "
    "index_head_dim index_topk mamba_n_heads mamba_d_head mamba_d_state mamba_num_heads "
    "mamba_head_dim ssm_state_size state_size mamba_chunk_size chunk_size rotary_dim "
    "hidden_size_per_layer_input sliding_window sliding_window_size attention_chunk_size "
    "attention_window_size window_size local_window keep_window_size block_size",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads attention_heads swa_num_attention_heads num_experts num_local_experts "
    "n_routed_experts moe_num_experts ffn_num_experts linear_num_value_heads linear_num_heads "
    "mamba_dt_rank time_step_rank laurel_rank o_groups",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads num_global_key_value_heads "
    "linear_num_key_heads num_experts_per_tok moe_top_k moe_k top_k_experts moe_topk "
    "num_experts_per_token attn_layer_period expert_layer_period n_mamba_heads "
    "mamba_n_groups n_groups mamba_ngroups",
    1: "attn_layer_offset expert_layer_offset n_group topk_group num_expert_group "
    "n_shared_experts num_shared_experts",
    0: "num_kv_shared_layers",
}
_SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers",
           "decoder_layers", "num_blocks")  # fmt: skip
_TYPES = ("layer_types", "layers_block_type", "mlp_layer_types")
_NUMBERS = ("attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids", "mlp_only_layers",
            "moe_layers")  # fmt: skip
_DROPPED = ("architectures", "dtype", "quantization_config", "transformers_version")
MINIATURE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError,
    StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
"""What transformers raises of sizes that do not fit, or of a call that an architecture refuses."""


def miniature(config: PretrainedConfig) -> PreTrainedModel:
    """Build a miniature of an architecture: float32, dropout off, in train mode.

    Every weight is random, biases as well; the global generator is untouched.

    Raises:
        ConfigError: its sizes do not come out small or do not fit one another.
    """
    try:
        small = small_config(config)
        with torch.device("meta"):
            size = sum(
                weight.numel() for weight in AutoModelForCausalLM.from_config(small).parameters()
            )
        if size > MAX_PARAMETERS:
            raise ConfigError(f"a small {config.model_type} still has {size} parameters")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) / 20)
    except MINIATURE_ERRORS as error:
        raise ConfigError(f"{config.model_type} has no small model: {error}") from error
    dropout_off(model)
    return model.train()


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy of a configuration with small sizes and two layers of each type."""
    described = _shrunk(copy.deepcopy(config.to_dict()))
    for name in _DROPPED:
        described.pop(name, None)
    return without_dropout(type(config).from_dict(described))


def _shrunk(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration, and of those inside it, with small values."""
    number, kept = _kept_layers(settings)
    small = {name: _small(name, value, number, kept) for name, value in settings.items()}
    heads = settings.get("num_attention_heads")
    if heads is not None and settings.get("num_key_value_heads") == heads:
        small["num_key_value_heads"] = small["num_attention_heads"]
    hidden = small.get("hidden_size")
    if isinstance(hidden, int):
        _keep_products(settings, small, hidden)
    return small


def _keep_products(settings: Mapping[str, Any], small: dict[str, Any], hidden: int) -> None:
    """Set sizes that must be a product of others."""
    if settings.get("attention_hidden_size"):
        small["attention_hidden_size"] = (
            hidden * settings["attention_hidden_size"] // settings["hidden_size"]
        )
        small["attention_head_dim"] = small["attention_hidden_size"] // small.get(
            "num_attention_heads", 1
        )
    inner = hidden * int(settings.get("mamba_expand") or settings.get("expand") or 0)
    if inner and "num_heads" in settings:
        small["num_heads"] = inner // small["head_dim"]
    if inner and "mamba_headdim" in settings:
        small["mamba_headdim"] = inner // small["n_mamba_heads"]


def _kept_layers(settings: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Return how many layers there are, and the numbers of two of each type."""
    number = next((settings[name] for name in _LAYERS if isinstance(settings.get(name), int)), 0)
    lists = [
        settings[name] for name in _TYPES if number and len(settings.get(name) or ()) == number
    ]
    numbers = [settings[name] for name in _NUMBERS if settings.get(name)]
    cycle = settings.get("block_types") or [0]
    kinds = [
        (
            cycle[i % len(cycle)],
            *(types[i] for types in lists),
            *(i in layers for layers in numbers),
        )
        for i in range(number)
    ]
    return number, [i for i, kind in enumerate(kinds) if kinds[:i].count(kind) < 2]


def _small(name: str, value: Any, number: int, kept: Sequence[int]) -> Any:  # noqa: ANN401
    if name in ("id2label", "label2id") or isinstance(value, bool):
        return value
    if name == "per_layer_config" and isinstance(value, dict):
        there = {int(at): part for at, part in value.items()}
        return {kept.index(at): _shrunk(part) for at, part in there.items() if at in kept}
    if isinstance(value, dict):
        return _shrunk(value)
    if isinstance(value, list):
        if name in _NUMBERS:
            return [kept.index(i) for i in value if i in kept]
        if name in ("short_factor", "long_factor"):
            return value[: _SIZES["head_dim"] // 2]
        return (
            [value[i] for i in kept] if number > 2 and len(value) == number else _ids(name, value)
        )
    if not isinstance(value, int):
        return value
    if name in _LAYERS and number:
        return len(kept)
    return min(value, _SIZES[name]) if name in _SIZES else _ids(name, value)


def _ids(name: str, value: Any) -> Any:  # noqa: ANN401
    """Return the id of a token in the small vocabulary."""
    if not name.endswith(("token_id", "token_index")):
        return value
    first = value[0] if isinstance(value, list) and value else value
    return min(first, VOCAB - 1) if isinstance(first, int) else first
