"""Judges a model folder in a fresh process, with nothing but transformers: what others will load.

Run: python trainers/export/self_test.py FOLDER EXPECTED

EXPECTED is a safetensors file: `tokens` [B, L], `mask` [B, L] and the `logits` [B, L, V] that the
model must give. Ends with exit code 0, or 1 and a line that says what is wrong. It imports nothing
of this project: it is run by its path.
"""

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

LOGIT_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Largest difference of a logit, as a share of the largest logit, or of 1 where all are smaller."""
NEW_TOKENS = 16


def wrong_logits(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> str | None:
    """Return what is wrong with the logits [B, L, V], if anything is."""
    with torch.no_grad():
        logits = model(input_ids=expected["tokens"], use_cache=False).logits.float()
    mask, right = expected["mask"].bool(), expected["logits"].float()
    scale = max(1.0, float(right[mask].abs().max()))
    apart = float((logits - right)[mask].abs().max()) / scale
    allowed = LOGIT_TOLERANCES[model.dtype]
    if apart <= allowed:
        return None
    return f"its logits are {apart:.2e} from those of the model in memory, {allowed:.0e} is allowed"


def wrong_tensors(model: PreTrainedModel, folder: Path) -> str | None:
    """Return what is wrong with the tensors of the folder, if anything is."""
    written = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_tensor(name)
                written += tensor.numel()
                if "proj" in name and tensor.dim() == 2:
                    empty = (tensor == 0).all(1).sum() + (tensor == 0).all(0).sum()
                    if empty:
                        return f"{name} has {int(empty)} rows or columns of zeros"
    loaded = sum(weight.numel() for weight in model.parameters())
    if written != loaded:
        return f"its files hold {written} numbers, and the model has {loaded}"
    return None


def wrong_text(model: PreTrainedModel, tokens: torch.Tensor) -> str | None:
    """Return what is wrong with text after tokens [1, L], if anything is."""
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    mask, writer = torch.ones_like(tokens), cast(Any, model)
    texts = [
        writer.generate(tokens, attention_mask=mask, use_cache=cached, pad_token_id=0, **options)
        for cached in (True, False)
    ]
    if model.dtype == torch.float32 and not torch.equal(*texts):
        return "it writes other text with a cache than without"
    return None


def fault_of(folder: Path, expected: Path) -> str | None:
    """Return what is wrong with a folder, if anything is."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    target = load_file(expected)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if len(model.model.layers) != config["num_hidden_layers"]:
        return "its layers are not those of its configuration"
    length = int(target["mask"][0].sum())
    return (
        wrong_tensors(model, folder)
        or wrong_logits(model, target)
        or wrong_text(model, target["tokens"][:1, : max(1, length // 2)])
    )


if __name__ == "__main__":
    sys.exit(fault_of(Path(sys.argv[1]), Path(sys.argv[2])))
