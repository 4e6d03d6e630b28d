#!/usr/bin/env bash
# Library:  transformers 5.23.0, torch 2.13.0.
# Expected: a model whose first layers are removed in memory (layers and num_hidden_layers cut, layer_idx renumbered)
#           computes what the remaining layers are, or raises: loading such a config.json is refused.
# Seen:     Qwen3 with two full and two sliding layers, of which the sliding ones are kept, runs without a
#           word and computes other logits: masks are chosen by config.layer_types[position], which still
#           begins with the types of the layers that are gone. Cutting config.layer_types as well gives
#           the logits of a model that is built with these two layers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import copy

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

torch.manual_seed(0)
shape = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "sliding_window": 4,
    "use_sliding_window": True, "initializer_range": 0.3,
}
types = ["full_attention"] * 2 + ["sliding_attention"] * 2
model = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=4, layer_types=types, **shape)).eval()
built = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2, layer_types=types[2:], **shape)).eval()
ids = torch.randint(3, 64, (1, 20))

kept = copy.deepcopy(model)
kept.model.layers = nn.ModuleList(list(kept.model.layers)[2:])
kept.config.num_hidden_layers = 2
for number, layer in enumerate(kept.model.layers):
    layer.self_attn.layer_idx = number
print("layers that stay are", [layer.self_attn.sliding_window for layer in kept.model.layers], "wide")
built.load_state_dict(kept.state_dict())


def logits(module):
    with torch.no_grad():
        return module(input_ids=ids, use_cache=False).logits


wrong = float((logits(kept) - logits(built)).abs().max())
print(f"config.layer_types of 4 entries left as it is: logits differ by {wrong:.2f}, no error")
kept.config.layer_types = kept.config.layer_types[2:]
right = float((logits(kept) - logits(built)).abs().max())
print(f"config.layer_types cut as well: logits differ by {right:.0e}")
try:
    Qwen3Config(num_hidden_layers=2, layer_types=types, **shape)
    refused = False
except Exception as error:
    refused = True
    print(f"the same config built anew: {type(error).__name__}")
assert wrong > 0.01 and right < 1e-5 and refused, "the behaviour has changed"
PY
