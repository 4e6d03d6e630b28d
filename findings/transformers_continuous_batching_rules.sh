#!/usr/bin/env bash
# Library:  transformers 5.23.0, torch 2.13.0.
# Expected: `generate_batch` (continuous batching) applies the rules of its GenerationConfig as `generate` does,
#           or raises; a keyword argument that it does not know is an error.
# Seen:     suppress_tokens works. repetition_penalty is dropped with a warning of its logger.
#           no_repeat_ngram_size is kept, and changes nothing, though its warning says only "might not be
#           supported": processors are handed each row's newest token, not its text. Unknown keywords are
#           swallowed; return_logprobs=True is one of them, and no log-probabilities come back: it belongs
#           into ContinuousBatchingConfig.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=128, initializer_range=0.3,
)
model = LlamaForCausalLM(config).eval()
prompt = [5, 6, 7, 8]


def settings(**rule):
    return GenerationConfig(
        do_sample=False, max_new_tokens=12, eos_token_id=63, pad_token_id=0, **rule
    )


def one_by_one(**rule):
    """Return what `generate` writes under a rule."""
    return model.generate(torch.tensor([prompt]), generation_config=settings(**rule))[0, 4:].tolist()


def batched(keywords=None, in_config=False, **rule):
    """Return what `generate_batch` writes, and how many log-probabilities come with it."""
    pages = ContinuousBatchingConfig(
        page_size=32, num_blocks=8, max_batch_tokens=64, return_logprobs=in_config
    )
    results = model.generate_batch(
        [prompt], generation_config=settings(**rule), continuous_batching_config=pages,
        **(keywords or {}),
    )
    result = next(iter(results.values()))
    return result.generated_tokens, len(result.logprobs)


free = one_by_one()
assert batched()[0] == free
rules = {
    "suppress_tokens": [free[0]],
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 2,
}
works = {}
for name, value in rules.items():
    alone, together = one_by_one(**{name: value}), batched(**{name: value})[0]
    assert alone != free, "the rule must change this text"
    works[name] = together == alone
    print(f"{name}: generate_batch", "applies it" if works[name] else "writes as without it")
    assert works[name] or together == free
swallowed = batched({"no_such_setting": 1})[0] == free
as_argument, in_config = batched({"return_logprobs": True})[1], batched(in_config=True)[1]
print(f"no_such_setting=1 is accepted: {swallowed}")
print(f"log-probabilities by return_logprobs=True: {as_argument}; in ContinuousBatchingConfig: {in_config}")
expected = {"suppress_tokens": True, "repetition_penalty": False, "no_repeat_ngram_size": False}
assert works == expected, "the behaviour has changed"
assert swallowed and (as_argument, in_config) == (0, 12), "the behaviour has changed"
PY
