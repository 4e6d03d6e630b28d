"""Models that are built in place: a Llama of a preset's sizes, or of one's own."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.config import ModelConfig
from trainers.errors import ConfigError

PRESETS = {  # hidden, layers, heads, intermediate
    "tiny": (128, 4, 4, 384),
    "small": (256, 4, 4, 1024),
    "base": (384, 8, 6, 1024),
}
VOCAB_SIZES = {"tiny": 512, "small": 4096, "base": 4096}


def llama_config(model: ModelConfig, vocab_size: int) -> LlamaConfig:
    """Return the configuration of a fresh Llama: its preset's sizes, or those given.

    Raises:
        ConfigError: the heads do not divide the width, or one another.
    """
    sizes = model.dimensions
    hidden, layers, heads, intermediate = PRESETS[model.preset]
    hidden, heads = sizes.hidden_size or hidden, sizes.num_heads or heads
    groups = sizes.num_kv_heads or heads
    if (sizes.head_dim is None and hidden % heads) or heads % groups:
        raise ConfigError(
            f"model.dimensions: hidden_size {hidden} must be a multiple of num_heads {heads}, and "
            f"that of num_kv_heads {groups}. Change one of them."
        )
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=sizes.num_layers or layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.intermediate_size or intermediate,
        max_position_embeddings=model.context,
        tie_word_embeddings=sizes.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def fresh_llama(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Build a Llama with random weights; the global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config).train()
