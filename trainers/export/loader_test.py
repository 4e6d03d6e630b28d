"""Judges an export in a fresh process by this package's loader: int8 folders and GGUF files.

Run: python -m trainers.export.loader_test SOURCE EXPECTED

EXPECTED is as that of `self_test`. Ends with exit code 0, or 1 and a line that says what is wrong.
"""

import sys

import torch
from safetensors.torch import load_file

from trainers.models.loading import load_causal_lm

LOADER_TOLERANCE = 1e-5
"""Largest difference of a logit, as a share of the largest logit, or of 1 where all are smaller."""


def loader_fault(source: str, expected: str) -> str | None:
    """Return what is wrong with a model that is loaded, if anything is."""
    target = load_file(expected)
    model = load_causal_lm(source).eval()
    with torch.no_grad():
        logits = model(input_ids=target["tokens"], use_cache=False).logits.float()
    right = target["logits"]
    apart = float((logits - right).abs().max()) / max(1.0, float(right.abs().max()))
    if apart <= LOADER_TOLERANCE:
        return None
    return (
        f"its logits are {apart:.2e} from those of the model in memory, {LOADER_TOLERANCE:.0e} is "
        "allowed"
    )


if __name__ == "__main__":
    sys.exit(loader_fault(sys.argv[1], sys.argv[2]))
