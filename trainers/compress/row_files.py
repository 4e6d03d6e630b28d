"""The three splits of rows in one safetensors file, and what each must hold.

calibration.tokens  calibration.mask  calibration.counted  selection. ...  report. ...
"""

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainers.compress.token_rows import Splits, TokenRows
from trainers.compress.variants import LEAST_TOKENS
from trainers.errors import CheckpointError, ConfigError

SPLIT_NAMES = ("calibration", "selection", "report")
ROW_PARTS = ("tokens", "mask", "counted")
LEAST_COUNTED = 256
"""Tokens that selection and report must count: a KL of fewer is noise."""


def write_splits(file: Path, splits: Splits) -> None:
    """Write splits in one step."""
    tensors = {
        f"{name}.{part}": getattr(getattr(splits, name), part).contiguous()
        for name in SPLIT_NAMES
        for part in ROW_PARTS
    }
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file(tensors, draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def read_splits(file: Path) -> Splits:
    """Read what `write_splits` wrote.

    Raises:
        CheckpointError: the file is gone or damaged.
    """
    try:
        tensors = load_file(file)
        rows = {
            name: TokenRows(*(tensors[f"{name}.{part}"] for part in ROW_PARTS))
            for name in SPLIT_NAMES
        }
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}. Start again with --clean, which moves the run away."
        ) from error
    return Splits(**rows)


def check_enough(splits: Splits, widest: int) -> None:
    """Refuse splits of too few tokens.

    Args:
        splits: to be used.
        widest: inputs of the widest unit.

    Raises:
        ConfigError: says which split, what it has and what it needs.
    """
    has = {
        "calibration": (int(splits.calibration.mask.sum()), LEAST_TOKENS * widest),
        "selection": (int(splits.selection.counted.sum()), LEAST_COUNTED),
        "report": (int(splits.report.counted.sum()), LEAST_COUNTED),
    }
    for name, (tokens, needed) in has.items():
        if tokens < needed:
            raise ConfigError(
                f"the {name} split has {tokens} tokens, and this model needs {needed}. Give more "
                "text with --data FILE, or an environment with more tasks with --env ID."
            )
