"""Wrappers of what the policy sees; they override the `advance` half, and `reset`.

A reward judges the task's own dialogue: `Sample.messages` stays as it was, unless `in_sample=True`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from llmgym.env import LLMWrapper, Observation
from llmgym.errors import EnvContractError
from llmgym.messages import Message, Sample

T = TypeVar("T")


class RewriteObservation(LLMWrapper, ABC):
    """A wrapper that drops or adds messages, by a plan that looks at their roles alone.

    Args:
        env: what is wrapped.
        in_sample: True to show the reward the same messages.
    """

    def __init__(self, env: gymnasium.Env, *, in_sample: bool = False) -> None:
        super().__init__(env)
        self.in_sample = in_sample

    @abstractmethod
    def plan(self, roles: Sequence[str]) -> list[int | Message]:
        """Return the new dialogue: positions of messages to keep, and messages to add."""

    @final
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode and return the rewritten prompt."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._rewrite_observation(obs), info

    @final
    def advance(self, action: str) -> tuple[Observation, bool, bool, Sample]:
        """Play one response and return the rewritten dialogue."""
        obs, terminated, truncated, sample = self.inner.advance(action)
        if self.in_sample:
            roles = [message.role for message in sample.messages]
            messages = _carry_out(self.plan(roles), sample.messages, lambda message: message)
            sample = replace(sample, messages=tuple(messages))
        return self._rewrite_observation(obs), terminated, truncated, sample

    def _rewrite_observation(self, obs: Observation) -> Observation:
        plan = self.plan([message["role"] for message in obs])
        return tuple(_carry_out(plan, obs, Message.as_dict))


@final
class SystemPrompt(RewriteObservation, RecordConstructorArgs):
    """Give the dialogue this system message, in place of its own if it has one."""

    def __init__(self, env: gymnasium.Env, text: str, *, in_sample: bool = False) -> None:
        RecordConstructorArgs.__init__(self, text=text, in_sample=in_sample)
        super().__init__(env, in_sample=in_sample)
        self.text = text

    def plan(self, roles: Sequence[str]) -> list[int | Message]:
        """Return the system message and all that is not its predecessor."""
        return [Message("system", self.text), *range(_num_system(roles), len(roles))]


@final
class FewShot(RewriteObservation, RecordConstructorArgs):
    """Put solved examples in front of the task, as earlier turns.

    Args:
        env: what is wrapped.
        examples: pairs of a prompt and its response.
        in_sample: True to show them to the reward as well.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        examples: Sequence[tuple[str, str]],
        *,
        in_sample: bool = False,
    ) -> None:
        RecordConstructorArgs.__init__(self, examples=examples, in_sample=in_sample)
        super().__init__(env, in_sample=in_sample)
        turns = [(Message("user", p), Message("assistant", r)) for p, r in examples]
        self.messages = tuple(message for turn in turns for message in turn)

    def plan(self, roles: Sequence[str]) -> list[int | Message]:
        """Return the system message, the examples, the dialogue."""
        start = _num_system(roles)
        return [*range(start), *self.messages, *range(start, len(roles))]


@final
class KeepTurns(RewriteObservation, RecordConstructorArgs):
    """Forget all but the task and the last n turns.

    The context of a later turn is no longer the earlier one plus something, so a trainer takes
    each turn as a sample of its own.

    Args:
        env: what is wrapped.
        n: turns to keep, each a response and what came back; 0 keeps the task alone.
        in_sample: True to cut the reward's dialogue as well.
    """

    def __init__(self, env: gymnasium.Env, n: int, *, in_sample: bool = False) -> None:
        if n < 0:
            raise EnvContractError(f"KeepTurns keeps 0 turns or more; received {n}")
        RecordConstructorArgs.__init__(self, n=n, in_sample=in_sample)
        super().__init__(env, in_sample=in_sample)
        self.n = n

    def plan(self, roles: Sequence[str]) -> list[int | Message]:
        """Return the messages before the first response, and those since the n-th last one."""
        responses = [i for i, role in enumerate(roles) if role == "assistant"]
        if len(responses) <= self.n:
            return list(range(len(roles)))
        start = responses[-self.n] if self.n else len(roles)
        return [*range(responses[0]), *range(start, len(roles))]


def _carry_out(
    plan: Sequence[int | Message], messages: Sequence[T], new: Callable[[Message], T]
) -> list[T]:
    return [messages[entry] if isinstance(entry, int) else new(entry) for entry in plan]


def _num_system(roles: Sequence[str]) -> int:
    return next((i for i, role in enumerate(roles) if role != "system"), len(roles))
