"""What every export is made of: the tasks of an id as rows, and episodes of it by index."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import gymnasium

from llmgym.data.tasks import num_tasks
from llmgym.env import LLMEnv, LLMWrapper, SingleTurnEnv, core_env, inner_env
from llmgym.errors import EnvContractError
from llmgym.messages import Completion
from llmgym.registry import spec
from llmgym.step import is_valid, reward_of

DEFAULT_SIZE = 1000
"""Tasks that are exported of a source without end."""


@final
@dataclass(frozen=True, slots=True)
class Source:
    """An environment by its id and arguments, plain enough to be built again elsewhere.

    Attributes:
        id: a registered id, or "package.module:ns/Name-v0".
        kwargs: arguments of the environment, `split` among them.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> gymnasium.Env:
        """Build one environment.

        Raises:
            EnvContractError: the id is no environment of text.
        """
        env = gymnasium.make(spec(self.id), disable_env_checker=True, **self.kwargs)
        inner_env(env)
        return env

    def is_single_turn(self) -> bool:
        """Return whether a response ends every episode."""
        return isinstance(core_env(self.make()), SingleTurnEnv)

    def rows(self, size: int | None) -> list[dict[str, Any]]:
        """Return the first tasks as rows: `prompt` (messages), `index`, `task_id` and `answer`.

        Args:
            size: how many; None for all, or 1000 of a source without end.

        Raises:
            EnvContractError: fewer than one is asked for, or more than there are.
        """
        env = self.make()
        there = num_tasks(core_env(env).tasks)
        count = (DEFAULT_SIZE if there is None else there) if size is None else size
        if count < 1 or (there is not None and count > there):
            raise EnvContractError(f"{self.id} has {there} tasks; received size={size}")
        return [_row(env, index) for index in range(count)]


def _row(env: gymnasium.Env, index: int) -> dict[str, Any]:
    observation, info = env.reset(seed=index, options={"index": index})
    answer = core_env(env).task.answer
    return {
        "prompt": [{"role": m["role"], "content": m["content"]} for m in observation],
        "index": index,
        "task_id": info["task_id"],
        "answer": answer if isinstance(answer, str) else json.dumps(answer, default=str),
    }


@final
class Episode:
    """One episode of a source: responses in, messages of the world and a reward out.

    Args:
        source: of the task.

    Attributes:
        over: whether the episode has ended, or none has begun.
        task_id: of the task that was begun.
    """

    def __init__(self, source: Source) -> None:
        self._env = source.make()
        self._layer: LLMEnv | LLMWrapper = inner_env(self._env)
        self._reward, self._valid, self._length = 0.0, True, 0
        self.over = True
        self.task_id = ""

    def begin(self, index: int) -> list[dict[str, Any]]:
        """Start the task at an index and return the messages of its prompt."""
        observation, info = self._env.reset(seed=index, options={"index": index})
        self.task_id = str(info["task_id"])
        self._reward, self._valid, self.over = 0.0, True, False
        self._length = len(observation)
        return [dict(message) for message in observation]

    def respond(self, text: str, *, cut: bool = False) -> list[dict[str, Any]]:
        """Play a response and return the new messages of the world.

        Args:
            text: the response.
            cut: whether it was cut at a limit of tokens.
        """
        response = Completion(text, finish_reason="length" if cut else "stop")
        observation, terminated, truncated, sample = self._layer.advance(response)
        (score,) = self._layer.score_batch([sample])
        self._valid = self._valid and is_valid(sample, score)
        self._reward += reward_of(sample, score)
        self.over = terminated or truncated
        new = observation[self._length + 1 :]
        self._length = len(observation)
        return [dict(message) for message in new]

    def reward(self) -> float | None:
        """Return what the episode earned so far; None where a reward failed."""
        return self._reward if self._valid else None
