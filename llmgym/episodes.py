"""Episodes that the checks play: with an environment's own solutions, and with junk."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium

from llmgym.env import core_env
from llmgym.rewards.base import Reward
from llmgym.rewards.rounding import tolerance

MAX_STEPS = 64

# Responses that every environment must survive and no grader may pay for.
JUNK = {
    "an empty action": "",
    "Unicode": "caf\u00e9 \u4f60\u597d \U0001f600 \u202e \x00",
    "100,000 characters": "<think>(" * 12_500,
    "a malformed tool call": '<tool_call>{"name": "no such tool", "arguments": [}</tool_call>',
    "prose": "I do not know what you mean by that.",
}

Trace = list[tuple[Any, float, bool, bool, bool]]
"""Of each step: observation, reward, terminated, truncated, whether the reward is valid."""


def played(
    env: gymnasium.Env, action: str | None, steps: int = MAX_STEPS
) -> list[tuple[str, tuple[Any, ...]]]:
    """Play an episode that was reset; return each response, and what `step` gave for it.

    Args:
        env: one of ours, perhaps wrapped.
        action: the response of every turn; None for what `solve()` says.
        steps: the most that are played.
    """
    results: list[tuple[str, tuple[Any, ...]]] = []
    for _ in range(steps):
        response = core_env(env).solve() or "" if action is None else action
        results.append((response, env.step(response)))
        _, (_, _, terminated, truncated, _) = results[-1]
        if terminated or truncated:
            break
    return results


def play(env: gymnasium.Env, action: str | None, steps: int = MAX_STEPS) -> Trace:
    """Play as `played` does, and return what happened without the infos."""
    return [
        (obs, float(reward), terminated, truncated, bool(info["reward_valid"]))
        for _, (obs, reward, terminated, truncated, info) in played(env, action, steps)
    ]


def total(trace: Trace) -> float | None:
    """Return what an episode earns; None where its reward failed, which has a law of its own."""
    return sum(step[1] for step in trace) if all(step[4] for step in trace) else None


def same(left: Trace, right: Trace, reward: Reward | None) -> bool:
    """Return whether two episodes went alike, their rewards but for rounding."""
    if len(left) != len(right):
        return False
    within = tolerance((step[1] for step in left), reward)
    return all(
        a[0] == b[0] and abs(a[1] - b[1]) <= within and tuple(a[2:]) == tuple(b[2:])
        for a, b in zip(left, right, strict=True)
    )


@contextmanager
def unwarned() -> Iterator[None]:
    """Suppress the warnings about failed rewards, where they are reported otherwise."""
    logger = logging.getLogger("llmgym.rewards")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
