#!/usr/bin/env bash
# Library:  transformers 5.23.0, torch 2.13.0.
# Expected: generate() gives the same greedy tokens with use_cache=True and use_cache=False.
# Seen:     with rope_type "dynamic" the base of the angles grows with the length, while keys in the
#           cache keep the angles they were written with. Beyond max_position_embeddings the cached and
#           the uncached model are two different models.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def lengths_that_differ(rope):
    """Return the new tokens after which cached and uncached greedy decoding differ; None: never."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        rope_parameters={"rope_theta": 10_000.0, **rope},
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(3, 64, (1, 24))
    ones = torch.ones_like(prompt)
    cached, full = (
        model.generate(
            prompt, attention_mask=ones, do_sample=False, max_new_tokens=40, use_cache=use
        )[0, 24:]
        for use in (True, False)
    )
    places = (cached != full).nonzero()
    return int(places[0]) if len(places) else None


plain = lengths_that_differ({"rope_type": "default"})
dynamic = lengths_that_differ({"rope_type": "dynamic", "factor": 4.0})
print(f"first new token that differs: default RoPE {plain}, dynamic RoPE {dynamic}")
assert plain is None and dynamic is not None and dynamic >= 8, "the behaviour has changed"
PY
