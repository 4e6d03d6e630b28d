#!/usr/bin/env bash
# Library:  transformers 5.23.0, torch 2.13.0.
# Expected: the methods of DynamicCache that choose rows of a batch (reorder_cache, batch_select_indices,
#           batch_repeat_interleave) work for every model whose forward fills such a cache.
# Seen:     for a hybrid model (LFM2: convolution and attention layers) reorder_cache works, and the other
#           two raise AttributeError: LinearAttentionLayer does not have them. Rows that have ended can
#           only leave such a cache by reorder_cache with fewer indices, which is what it is not named for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

torch.manual_seed(0)
config = AutoConfig.for_model(
    "lfm2", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, layer_types=["conv", "full_attention"],
)
model = AutoModelForCausalLM.from_config(config).eval()
rows = torch.randint(3, 64, (3, 6))
new = torch.randint(3, 64, (3, 1))


def filled():
    """Return a cache that has read the rows."""
    cache = DynamicCache(config=config)
    model(input_ids=rows, past_key_values=cache, use_cache=True)
    return cache


def outcome(change):
    """Return the name of the error of a change to a filled cache; "works" without one."""
    try:
        change(filled())
    except Exception as error:
        return type(error).__name__
    return "works"


kept = torch.tensor([0, 2])
seen = {
    "reorder_cache": outcome(lambda cache: cache.reorder_cache(kept)),
    "batch_select_indices": outcome(lambda cache: cache.batch_select_indices(kept)),
    "batch_repeat_interleave": outcome(lambda cache: cache.batch_repeat_interleave(2)),
}
for name, result in seen.items():
    print(f"{name}: {result}")
with torch.no_grad():
    cache = filled()
    cache.reorder_cache(kept)
    fewer = model(input_ids=new[kept], past_key_values=cache, use_cache=True).logits[:, -1]
    alone = model(input_ids=torch.cat([rows, new], 1)[kept]).logits[:, -1]
difference = float((fewer - alone).abs().max())
print(f"two of three rows after reorder_cache with two indices: logits differ by {difference:.1e}")
assert seen["reorder_cache"] == "works" and difference < 1e-4, "the behaviour has changed"
assert seen["batch_select_indices"] == "AttributeError", "the behaviour has changed"
assert seen["batch_repeat_interleave"] == "AttributeError", "the behaviour has changed"
PY
