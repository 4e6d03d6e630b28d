"""The options of a vector's reset: which slots begin anew, and with which tasks."""

import difflib
from typing import Any

import numpy as np

from llmgym.errors import EnvContractError

VALUES = {"indices": "index", "tasks": "task", "levels": "level"}
"""Options of a vector's reset, and the option of one environment's that each is a list of."""
OPTIONS = (*VALUES, "group_size", "reset_mask")


def slots_to_reset(options: dict[str, Any], num_envs: int) -> list[int]:
    """Take `reset_mask` out of the options and return its slots; without one, all.

    Raises:
        EnvContractError: there is an unknown option, or the mask does not fit.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        near = difflib.get_close_matches(unknown[0], OPTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise EnvContractError(f"reset takes {', '.join(OPTIONS)}; received {unknown}{hint}")
    mask = np.asarray(options.pop("reset_mask", np.ones(num_envs, dtype=np.bool_)))
    if mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise EnvContractError(
            f"reset_mask must be [{num_envs}] bool with one True at least; received "
            f"{mask.dtype} {list(mask.shape)}"
        )
    return np.flatnonzero(mask).tolist()


def reset_values(
    options: dict[str, Any], num_slots: int, group_size: int
) -> tuple[str, list[Any]] | None:
    """Return the option of each environment's reset and its value for each group; None: no option.

    Raises:
        EnvContractError: two options say the task, or numbers do not fit together.
    """
    if group_size < 1 or num_slots % group_size:
        raise EnvContractError(
            f"group_size must divide the {num_slots} slots to reset; got {group_size}"
        )
    names = [name for name in VALUES if name in options]
    if not names:
        return None
    if len(names) > 1:
        raise EnvContractError(f"reset takes one of {', '.join(VALUES)}; received {names}")
    values = list(options[names[0]])
    if len(values) != num_slots // group_size:
        raise EnvContractError(
            f"{names[0]} takes one value for each of {num_slots // group_size} groups "
            f"({num_slots} slots, group_size {group_size}); got {len(values)}"
        )
    return VALUES[names[0]], values
