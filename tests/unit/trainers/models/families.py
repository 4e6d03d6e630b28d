"""One tiny random model of each family whose architecture is supported."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainers.batch import TextInputs

VOCAB = 64
WIDTH = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
    "attention_dropout": 0.5,
}
CHANGES = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0, "layer_types": None},
    "phi": {"resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "granite": {"logits_scaling": 4.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    "resid_pdrop": 0.5,
    "embd_pdrop": 0.5,
    "attn_pdrop": 0.5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = ("llama", "qwen3", "mistral", "gemma", "phi", "gpt2")
HEADS = ("gemma2", "granite")  # a cap and a scale on the logits

HALVES = ["sliding_attention", "full_attention"]
UNCLASSIFIED = {
    "olmo2": {},
    "granite": {},
    "cohere": {},
    "gemma3_text": {"head_dim": 8, "layer_types": HALVES, "sliding_window": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": True, "dropout": 0.0},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}
"""Families without a token classifier; of OPT the hidden states are narrower than hidden_size."""


def family_config(name):
    if name == "gpt2":
        return AutoConfig.for_model("gpt2", **GPT2)
    given = {
        k: v
        for k, v in {**WIDTH, **CHANGES.get(name, UNCLASSIFIED.get(name, {}))}.items()
        if v is not None
    }
    return AutoConfig.for_model(name, **given)


def family_model(name, *, dropout=0.0):
    """Build the model with every weight and bias random; without dropout unless it is asked for."""
    config = family_config(name)
    if not dropout:
        for field in ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if field in config.to_dict():
                setattr(config, field, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name_, parameter in model.named_parameters():
                if name_.endswith("bias"):
                    parameter.normal_(std=0.5)
    return model.float().train()


def ragged_inputs(num_prompt=5, num_actions=4, rows=4):
    """Rows of different prompts and responses: [4, 9], padded on both sides."""
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCAB, (rows, num_prompt + num_actions), generator=rng)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for row in range(rows):
        mask[row, : row % num_prompt] = False
        mask[row, num_prompt + num_actions - row % num_actions :] = False
    inputs = TextInputs(tokens=tokens, attention_mask=mask, num_prompt=num_prompt)
    return inputs, mask[:, num_prompt:].clone()
