"""Tiny random models of the families that can be sliced, and text for them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainers.compress.database import Database
from trainers.compress.token_rows import Splits, TokenRows, pad_rows

VOCAB = 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
KINDS = {
    "llama": {"tie_word_embeddings": True},
    "llama biased": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6},
    "mistral": {"sliding_window": None},
    "qwen2": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "use_sliding_window": True,
        "sliding_window": 4,
    },
    "qwen3": {"tie_word_embeddings": True},
}
"""Two query heads per KV head, three KV heads, so that heads come in odd numbers."""


def model_of(kind="llama", **changes):
    """A model with opinions: large random weights, biases too."""
    family = kind.split()[0]
    config = AutoConfig.for_model(family, **{**SIZES, **KINDS[kind], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
    return model.eval()


def rows_of(seed, count=12, width=20) -> TokenRows:
    """Ragged rows of random ids."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (count, width), generator=rng).tolist()
    return pad_rows([row[: width - number % 5] for number, row in enumerate(ids)])


def splits():
    """Three splits of random text."""
    return Splits(calibration=rows_of(0, 24), selection=rows_of(1), report=rows_of(2))


def database_of(kind="llama", **changes):
    """A database of such a model."""
    return Database(model_of(kind, **changes), splits())
