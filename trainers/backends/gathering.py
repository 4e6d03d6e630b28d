"""All weights of an engine on rank 0, which it saves; each function is a collective.

An engine's `weights` gather what ZeRO has sharded: `zero/engine.py`.
"""

from torch import Tensor, nn

from trainers.backends.base import Engine
from trainers.distributed.collectives import is_main
from trainers.models.adapters import has_adapters
from trainers.models.unshard import unsharded


def gathered_module(engine: Engine) -> nn.Module:
    """Return an engine's module with every weight, to be saved by rank 0; a collective.

    Where weights are shared out, or adapters lie beside them, rank 0 gets a copy on the CPU, with
    adapters merged, and the others the module as it is.
    """
    if not engine.is_sharded and not has_adapters(engine.module):
        return engine.module
    weights = gathered(engine)
    return unsharded(engine.module, weights) if is_main() else engine.module


def gathered(engine: Engine, *, trained: bool = False) -> dict[str, Tensor]:
    """Return an engine's weights by name, on the CPU of rank 0; none elsewhere; a collective."""
    weights: dict[str, Tensor] = {}
    for name, tensor in engine.weights(trained=trained):
        if is_main():
            weights[name] = tensor.to("cpu", copy=True)
    return weights
