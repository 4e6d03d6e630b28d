"""What an environment says of the next action in its infos: which are allowed, and which are good.

`info["action_mask"]` is True on allowed actions, `info["action_prior"]` is added to logits; both
have one entry per action of a Discrete space. An environment gives them after every reset and
step, or never. B environments, T steps, K actions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Discrete
from torch import Tensor

from trainers.errors import ConfigError

MASK, PRIOR = "action_mask", "action_prior"


class ActionLimits(NamedTuple):
    """Of the next action: a mask [K] and a prior [K], or None."""

    mask: np.ndarray | None = None
    prior: np.ndarray | None = None


def limits_of(info: Mapping[str, Any], space: Space) -> ActionLimits:
    """Read the limits of an info.

    Raises:
        ConfigError: they do not fit the space of actions, or no action is allowed.
    """
    arrays = [info.get(name) for name in (MASK, PRIOR)]
    for name, array in zip((MASK, PRIOR), arrays, strict=True):
        if array is None:
            continue
        shape = (int(space.n),) if isinstance(space, Discrete) else None
        if np.shape(array) != shape:
            raise ConfigError(
                f"the info of this environment has {name} of shape {np.shape(array)}, and its "
                f"actions are {space}. Give one entry per action of a Discrete space."
            )
    mask, prior = arrays
    if mask is not None and not np.any(mask):
        raise ConfigError(
            f"{MASK} of this environment allows no action. End the episode before that."
        )
    return ActionLimits(
        None if mask is None else np.asarray(mask, dtype=bool),
        None if prior is None else np.asarray(prior, dtype=np.float32),
    )


def stacked_limits(limits: Sequence[ActionLimits]) -> list[Tensor | None]:
    """Return mask and prior [B, K] of B environments.

    Raises:
        ConfigError: some give them and others do not.
    """
    made: list[Tensor | None] = []
    for name, column in zip((MASK, PRIOR), zip(*limits, strict=True), strict=True):
        there = [array for array in column if array is not None]
        if there and len(there) < len(column):
            raise ConfigError(
                f"this environment gives {name} in some infos and not in others. Give it after "
                "every reset and step, or never."
            )
        made.append(torch.from_numpy(np.stack(there)) if there else None)
    return made


@final
class LimitsRecording:
    """The limits of every step of a rollout, in order."""

    def __init__(self) -> None:
        self._steps: list[list[Tensor | None]] = []

    def add(self, limits: list[Tensor | None]) -> None:
        """Take mask and prior [B, K] of the next step.

        Raises:
            ConfigError: another step had them, and this one has not, or the other way round.
        """
        kinds = [value is not None for value in limits]
        if self._steps and kinds != [value is not None for value in self._steps[0]]:
            raise ConfigError(
                f"this environment gives {MASK} and {PRIOR} in some infos and not in others. Give "
                "them after every reset and step, or never."
            )
        self._steps.append(limits)

    def columns(self, num_steps: int) -> list[Tensor | None]:
        """Return mask and prior [B, T, K] of `num_steps` steps; those behind the last repeat it."""
        steps = self._steps + self._steps[-1:] * (num_steps - len(self._steps))
        made: list[Tensor | None] = []
        for column in zip(*steps, strict=True):
            there = [value for value in column if value is not None]
            made.append(torch.stack(there, 1) if there else None)
        return made
