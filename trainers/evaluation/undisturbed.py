"""Evaluation leaves no trace: modes of modules and the global generators are restored."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from trainers.checkpoint.state_files import random_state, restore_random_state


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode; afterwards restore every submodule's mode and the generators."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    state = random_state()
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        restore_random_state(state)
