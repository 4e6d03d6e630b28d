#!/usr/bin/env bash
# Library:  transformers 5.23.0, torch 2.13.0 (on an index of CPU builds, or with CUDA; either shows it).
# Expected: with an attention mask, the logits of a row do not depend on the other rows of its batch.
# Seen:     Phi-3's longrope chooses its short or long factors by the longest row of the batch. Beside a
#           row that is longer than original_max_position_embeddings, a short row gets the long factors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PY'
import torch
from transformers import Phi3Config, Phi3ForCausalLM

rope = {"rope_type": "longrope", "rope_theta": 10_000.0}
rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 4.0, 8.0, 16.0]}
config = Phi3Config(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=32,
    initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2, rope_parameters=rope,
)
torch.manual_seed(0)
model = Phi3ForCausalLM(config).eval()


def difference(neighbour_length):
    """Return how far the logits of a row of 8 tokens move when a longer row is beside it."""
    short = torch.randint(3, 64, (1, 8))
    neighbour = torch.randint(3, 64, (1, neighbour_length))
    ids, mask = torch.zeros(2, neighbour_length, dtype=torch.long), torch.ones(2, neighbour_length)
    ids[0, :8], ids[1], mask[0, 8:] = short, neighbour, 0
    with torch.no_grad():
        beside = model(ids, attention_mask=mask.long()).logits[0, :8]
        return float((beside - model(short).logits[0]).abs().max())


below, above = difference(30), difference(60)
print(f"beside a row of 30 tokens: {below:.1e}; beside one of 60 tokens: {above:.3f}")
assert below < 1e-5 and above > 0.1, "the behaviour has changed"
PY
