"""Writes a sliced model as a plain folder, and keeps it only if a fresh process computes the same.

The folder has the weights, the tokenizer of the dense model, its generation settings and a card;
`AutoModelForCausalLM`, vLLM and llama.cpp's converter read it as any other.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from trainers.errors import CheckpointError
from trainers.export import self_test
from trainers.export.folders import render_card, replacing
from trainers.models.saving import save_model
from trainers.redaction import text_files

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""What a tokenizer may be made of; those that are there are copied."""
TEST_SECONDS = 600
"""A self-test may take."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedLogits:
    """What the folder must compute.

    Attributes:
        tokens: [B, L].
        mask: [B, L] True on real tokens.
        logits: [B, L, V] of the model in memory.
    """

    tokens: Tensor
    mask: Tensor
    logits: Tensor


def check_in_fresh_process(
    folder: Path, expected: ExpectedLogits, *, module: str | None = None
) -> None:
    """Load a folder with transformers alone, and compare.

    Raises:
        CheckpointError: it does not load, or does not compute what it must.
    """
    program = [self_test.__file__] if module is None else ["-m", module]
    with TemporaryDirectory(prefix="expected.") as aside:
        path = Path(aside) / "expected.safetensors"
        tensors = {
            "tokens": expected.tokens.contiguous(),
            "mask": expected.mask.to(torch.uint8).contiguous(),
            "logits": expected.logits.float().contiguous(),
        }
        save_file(tensors, path)
        done = subprocess.run(
            [sys.executable, *program, str(folder), str(path)],
            capture_output=True,
            text=True,
            timeout=TEST_SECONDS,
            check=False,
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise CheckpointError(
            f"the folder that was written for {folder.name} is refused: "
            f"{lines[-1] if lines else 'its self-test was killed'}. Nothing was kept."
        )


def export_smaller(
    folder: Path,
    model: PreTrainedModel,
    expected: ExpectedLogits,
    card: Mapping[str, Any],
    *,
    tokenizer: Path | None = None,
) -> int:
    """Write a sliced model and return its bytes on disk; nothing is kept of one that is refused.

    Args:
        folder: replaced if it exists.
        model: of one shape for all layers.
        expected: what it must compute.
        card: see `render_card`.
        tokenizer: folder of the dense model, whose tokenizer is copied.

    Raises:
        CheckpointError: it cannot be written, or a fresh process computes something else.
    """
    with replacing(folder) as aside:
        save_model(model, aside)
        if tokenizer is not None:
            for path in (tokenizer / name for name in TOKENIZER_FILES):
                if path.is_file():
                    shutil.copy(path, aside / path.name)
        text_files.write(aside / "README.md", render_card(card))
        check_in_fresh_process(aside, expected)
    return sum(path.stat().st_size for path in folder.iterdir())
