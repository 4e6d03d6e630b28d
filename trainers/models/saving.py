"""Model folders as transformers writes them, and whether it will: asked before anything learns."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from trainers.distributed.collectives import name_accelerator
from trainers.errors import CheckpointError, ConfigError
from trainers.models.critic import Critic, classifier_of

SAVE_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError)
"""What transformers raises where it cannot save a model; the disk's errors are other ones."""


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write a model into a folder that exists.

    Raises:
        OSError: the disk does not take it.
        CheckpointError: transformers does not save it.
    """
    try:
        _write(model, folder)
    except SAVE_ERRORS as error:
        raise CheckpointError(
            f"transformers does not save {type(model).__name__}: {error}. The checkpoint is whole: "
            "once this is mended, go on with --resume."
        ) from error


def check_savable(
    model: PreTrainedModel, critic: Critic | None, within: Path | None = None
) -> None:
    """Write the folders that a run ends with, with one number per weight, and remove them.

    Args:
        model: the policy without weights.
        critic: the same; None where none learns.
        within: a folder on the disk of the run, whose room is looked at; None: any disk.

    Raises:
        ConfigError: transformers does not save such a model, or the disk has no room for both.
        CheckpointError: nothing can be written there.
    """
    models = [model]
    if critic is not None:
        classifier = classifier_of(critic.trunk, critic.head)
        models.append(classifier or critic.trunk)
    try:
        if within is not None:
            _check_room(within, 4 * sum(w.numel() for model in models for w in model.parameters()))
        for saved in models:
            with TemporaryDirectory(prefix=".export.", dir=within) as folder:
                _rehearse(saved, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write a model to {within}: {error}") from error


def _write(model: PreTrainedModel, folder: Path | str, **options: Any) -> None:
    """Save a model; accelerate imports DeepSpeed meanwhile, which prints its guess at a device."""
    name_accelerator()
    model.save_pretrained(folder, **options)


def _check_room(within: Path, needed: int) -> None:
    free = shutil.disk_usage(within).free
    if free < needed:
        raise ConfigError(
            f"the disk of {within} has {free / 2**30:.1f} GiB free, and the folders that the run "
            f"ends with take {needed / 2**30:.1f} GiB. Free some, or name another disk: --run.dir"
        )


def _rehearse(model: PreTrainedModel, folder: str) -> None:
    weights = model.state_dict(keep_vars=True)
    numbers = {id(weight): torch.zeros(1, dtype=weight.dtype) for weight in weights.values()}
    state = {name: numbers[id(weight)] for name, weight in weights.items()}  # tied ones stay tied
    try:
        _write(model, folder, state_dict=state, save_original_format=False)
    except SAVE_ERRORS as error:
        raise ConfigError(
            f"transformers does not save {type(model).__name__}, so that all would be lost in the "
            f"end: {error}. Choose a model of another family."
        ) from error
