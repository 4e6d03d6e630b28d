"""What a vector's slots must have in common, and which settings fit together."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import gymnasium

from llmgym.errors import EnvContractError

EnvFn = Callable[[], gymnasium.Env]
ExecutorName = Literal["inline", "threads", "processes"]


def score_groups(fns: Sequence[EnvFn]) -> list[list[int]]:
    """Return the slots of each callable: one score group each."""
    groups: dict[int, list[int]] = {}
    for slot, make in enumerate(fns):
        groups.setdefault(id(make), []).append(slot)
    return list(groups.values())


def check_settings(
    num_envs: int,
    executor: str,
    *,
    workers: int | None,
    env_timeout: float | None,
    memory_gb: float | None,
) -> None:
    """Refuse settings that are out of range or do not fit together.

    Raises:
        EnvContractError: says which.
    """
    if num_envs < 1:
        raise EnvContractError("A vector needs one slot at least; received no env_fns")
    if executor not in get_args(ExecutorName):
        raise EnvContractError(
            f'executor is "inline", "threads" or "processes"; received {executor!r}'
        )
    if executor == "inline" and workers is not None:
        raise EnvContractError('workers need executor="threads" or "processes"')
    if executor != "processes" and memory_gb is not None:
        raise EnvContractError('memory_gb needs executor="processes"')
    if memory_gb is not None and not memory_gb > 0:
        raise EnvContractError(f"memory_gb must be above 0, or None; received {memory_gb}")
    if env_timeout is not None and not env_timeout > 0:
        raise EnvContractError(f"env_timeout must be above 0, or None; received {env_timeout}")
    if workers is not None and workers < 1:
        raise EnvContractError(f"workers must be 1 or more; received {workers}")


def check_spaces(envs: Sequence[gymnasium.Env]) -> None:
    """Refuse slots whose spaces differ.

    Raises:
        EnvContractError: names the slot and the space.
    """
    for slot, env in enumerate(envs):
        for name, first in (
            ("observation_space", envs[0].observation_space),
            ("action_space", envs[0].action_space),
        ):
            if getattr(env, name) != first:
                raise EnvContractError(
                    f"Slots must have equal spaces: {name} of slot {slot} is {getattr(env, name)}, "
                    f"of slot 0 {first}"
                )
