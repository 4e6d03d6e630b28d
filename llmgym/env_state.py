"""What environments remember over episodes, for the checkpoint of a trainer.

A wrapper or an environment that learns from what it scores has `state_dict()` and
`load_state_dict(state)`. Only the environment that scores for its slots has anything to remember.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium

from llmgym.errors import EnvContractError
from llmgym.vector import LLMVectorEnv


@runtime_checkable
class Stateful(Protocol):
    """Remembers something over episodes."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what it remembers, as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


def env_states(envs: LLMVectorEnv) -> list[dict[str, Any]]:
    """Return what the layers of each scoring environment remember, from the outside in."""
    return [dict(layer.state_dict()) for layer in _stateful(envs)]


def load_env_states(envs: LLMVectorEnv, states: Sequence[Mapping[str, Any]]) -> None:
    """Restore what `env_states` returned.

    Raises:
        EnvContractError: the environments have other layers than those the states are of.
    """
    layers = list(_stateful(envs))
    if len(layers) != len(states):
        raise EnvContractError(
            f"{len(states)} layers of environments are to be restored, and {len(layers)} remember "
            "anything. Resume with the wrappers that the run had"
        )
    for layer, state in zip(layers, states, strict=True):
        layer.load_state_dict(state)


def _stateful(envs: LLMVectorEnv) -> Iterator[Stateful]:
    for env in envs.scoring_envs():
        for layer in _layers(env):
            if isinstance(layer, Stateful):
                yield layer


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env
