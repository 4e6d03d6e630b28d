"""Folders of models with random weights, which every side loads; made once.

    python -m scripts.bench.models FOLDER '{"hidden": 256, ...}'

The tokenizer is byte-level and knows few words: ids that it lacks are sampled as any other.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.bench.shapes import Model
from trainers.models.chat import train_tokenizer

CONTEXT = 1024


def save(folder: Path, model: Model) -> None:
    """Write a Llama of these sizes, float32, with its tokenizer."""
    tokenizer: Any = train_tokenizer(["12 + 34 = 46"], 300)
    config = LlamaConfig(
        vocab_size=model.vocab,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads or model.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    made = LlamaForCausalLM(config)
    count = sum(weight.numel() for weight in made.parameters())
    assert count == model.parameters, f"{count} parameters, and {model.parameters} were counted"
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    save(Path(sys.argv[1]), Model(**json.loads(sys.argv[2])))
