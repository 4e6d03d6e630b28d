"""What environments remember over episodes, for the checkpoint of a trainer.

A wrapper or an environment that learns from what it scores has `state_dict()` and
`load_state_dict(state)`. Of the slots of a vector, only the one that scores for the others has
anything to remember.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium

from llmgym.errors import EnvContractError


@runtime_checkable
class Stateful(Protocol):
    """Remembers something over episodes."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what it remembers, as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


def stateful_layers(envs: Iterable[gymnasium.Env]) -> list[Stateful]:
    """Return the layers of environments that remember something, each from the outside in."""
    layers: list[Stateful] = []
    for env in envs:
        layer = env
        while True:
            if isinstance(layer, Stateful):
                layers.append(layer)
            if not isinstance(layer, gymnasium.Wrapper):
                break
            layer = layer.env
    return layers


def states_of(layers: Iterable[Stateful]) -> list[dict[str, Any]]:
    """Return what each layer remembers."""
    return [dict(layer.state_dict()) for layer in layers]


def load_states(layers: Sequence[Stateful], states: Sequence[Mapping[str, Any]]) -> None:
    """Restore what `states_of` returned.

    Raises:
        EnvContractError: there are other layers than those the states are of.
    """
    if len(layers) != len(states):
        raise EnvContractError(
            f"{len(states)} layers of environments are to be restored, and {len(layers)} remember "
            "anything. Resume with the wrappers that the run had"
        )
    for layer, state in zip(layers, states, strict=True):
        layer.load_state_dict(state)
