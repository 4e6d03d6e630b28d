"""The data that passes between an environment, its rewards and a trainer: frozen records, no logic.

An environment speaks in messages; token ids, masks and budgets belong to the trainer.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]
ScoreStatus = Literal["ok", "abstain", "error"]


class StopReason(StrEnum):
    """Why an episode ended; `terminated` and `truncated` follow from it."""

    ANSWERED = "answered"
    ENV_DONE = "env_done"
    PARSE_ERROR = "parse_error"
    LENGTH = "length"
    MAX_TURNS = "max_turns"
    CONTEXT = "context"
    BUDGET = "budget"
    TIMEOUT = "timeout"
    ENV_ERROR = "env_error"

    @property
    def terminates(self) -> bool:
        """True where the task itself ended; False where a limit or a failure cut it."""
        return self in (StopReason.ANSWERED, StopReason.ENV_DONE, StopReason.PARSE_ERROR)

    @property
    def invalidates(self) -> bool:
        """True where the episode's reward means nothing, so the sample leaves the loss."""
        return self in (StopReason.TIMEOUT, StopReason.ENV_ERROR)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool: its name, its arguments and the id its answer refers to."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the form that chat templates read."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        return {"type": "function", "id": self.id, "function": function}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialogue.

    Attributes:
        tool_calls: calls that an assistant made, where they are not part of its text.
        tool_call_id: of the call that a message of the role tool answers.
        tools: JSON schemas of the tools that the assistant may call from here on; the first message
            of an episode has them. A trainer gives them to its chat template.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return a new dict with the fields that are set: what an observation holds."""
        entry: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name is not None:
            entry["name"] = self.name
        if self.tool_calls:
            entry["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            entry["tool_call_id"] = self.tool_call_id
        if self.tools:
            entry["tools"] = [deepcopy(dict(schema)) for schema in self.tools]
        return entry


class Completion(str):
    """One response: text that knows how it was made. A plain `str` is accepted everywhere.

    Attributes:
        finish_reason: "stop" (an end token), "length" (cut at a limit) or "abort".
        token_ids: the sampled ids, an end token included; empty for a plain string.
        policy_version: the version of the weights that wrote it, or None.
    """

    __slots__ = ("finish_reason", "policy_version", "token_ids")
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    policy_version: int | None

    def __new__(
        cls,
        text: str = "",
        *,
        finish_reason: FinishReason = "stop",
        token_ids: tuple[int, ...] = (),
        policy_version: int | None = None,
    ) -> Self:
        """Make a completion; a `Completion` passed as text hands over nothing but its text."""
        self = super().__new__(cls, text)
        self.finish_reason = finish_reason
        self.token_ids = token_ids
        self.policy_version = policy_version
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        """Rebuild from text and attributes, so that pickling keeps all of it."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return (str(self),), state


@dataclass(frozen=True)
class Task:
    """One thing to do: a prompt, and what a reward needs to judge the answer.

    Attributes:
        id: content hash, stable over processes and splits.
        prompt: text, or the messages of a dialogue.
        answer: what the response is compared with.
        solution: a perfect response, where one is known.
        source: the data set or environment it came from.
        level: difficulty, for curricula.
        meta: every other column of the row it was read from.
        place: file and line of that row; empty where no file holds it.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: Any = None
    solution: str | None = None
    source: str = ""
    level: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Reply:
    """One turn of the world: what it says, whether the episode is over, what it paid.

    Attributes:
        messages: what the world says; text is the message of a user.
        done: True where the task ended.
        reward: what the world itself pays for this turn.
        truncated: True where the world cut the episode at a limit of its own; `done` wins.
        reason: why the task ended, where `done` alone does not say it: `PARSE_ERROR`.
    """

    messages: tuple[Message, ...] | str = ()
    done: bool = False
    reward: float = 0.0
    truncated: bool = False
    reason: StopReason | None = None


@dataclass(frozen=True)
class Sample:
    """One response in its episode, with its own task: all that a reward may look at.

    Attributes:
        messages: the dialogue up to and without `response`.
        response: what the policy wrote.
        text: what the environment read, after action wrappers.
        turn: 0 for the first response of the episode.
        env_reward: what the environment itself paid for this turn.
        group: samples of the same task in one batch share it.
        state: anything the environment hands to its reward.
    """

    task: Task
    messages: tuple[Message, ...]
    response: Completion
    text: str
    turn: int = 0
    terminated: bool = True
    truncated: bool = False
    reason: StopReason | None = None
    env_reward: float = 0.0
    group: int = 0
    state: Any = None


@dataclass(frozen=True)
class Score:
    """What a reward says of one sample.

    Attributes:
        value: the weighted total, finite.
        parts: named figures, logged apart.
        status: "ok"; "abstain" where the reward does not apply; "error" where it failed. An episode
            whose last response nobody scored is dropped like a failed one.
        spans: (start, end, reward) over characters of `response`: which parts of `value` belong to
            which steps. A trainer pays each on the last token of its span, the rest at the end.
        error: the first line of the failure, for status "error".
        retries: calls that were repeated to get it; of a composed reward, those of its parts.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    status: ScoreStatus = "ok"
    spans: tuple[tuple[int, int, float], ...] = ()
    error: str | None = None
    retries: int = 0
