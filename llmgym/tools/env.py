"""`ToolEnv`: a policy calls tools and reads their results, until it answers without a call.

The policy's text is kept as it wrote it, calls included; a result is a message of the role `tool`.
Whatever goes wrong in a call is answered with what was wrong, and the policy may try again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np

from llmgym.data.tasks import TaskSource
from llmgym.env import LLMEnv, RewardSpec
from llmgym.errors import EnvContractError, ToolError
from llmgym.messages import Completion, Message, Reply, StopReason, Task, ToolCall
from llmgym.tools.calls import CallFormat, Read, call_format
from llmgym.tools.tool import Tool, ToolSpec

PerEpisode = Callable[[Task, np.random.Generator], Sequence[ToolSpec]]
Describe = Literal["template", "system", "none"]
ID_LENGTH = 9
"""Characters of the id of a call: templates in the manner of Mistral's take no other length."""


@final
@dataclass(frozen=True, slots=True)
class ToolUse:
    """What was called in an episode so far; a reward finds it as `Sample.state`.

    Attributes:
        calls: calls that were made, in order.
        results: what each was answered.
        failed: calls that were answered with an error.
        malformed: responses that began a call and did not write it rightly.
        answered: True where the last response calls nothing: it is an answer.
    """

    calls: tuple[ToolCall, ...] = ()
    results: tuple[str, ...] = ()
    failed: int = 0
    malformed: int = 0
    answered: bool = False


@final
class ToolEnv(LLMEnv):
    """Tasks that a policy solves with tools.

    A task's `meta["calls"]`, a list of {"name", "arguments"}, are the calls of its solution:
    `solve` writes them one by one and then `Task.solution`.

    Args:
        tasks: a `TaskSource`, or a list of tasks.
        reward: as in `LLMEnv`; it sees a `ToolUse` as `Sample.state`.
        tools: an explicit list of functions, `Tool`s, addresses or MCP servers (`Tool.of`).
        per_episode: gives further tools to an episode, from its task and its generator: tools with
            a state.
        parser: how calls are written: `hermes`, `json`, `xml`, `python`, or a function of a
            response and the tools.
        describe: who tells the policy of the tools: the chat `template`, which gets their schemas;
            the `system` message, which gets them and how to call them; or `none`.
        max_calls: calls that an episode may make; a further one is answered with an error.
        tool_timeout: seconds that a call may take.
        on_parse_error: a malformed call is answered ("reply"), or ends the episode ("end").
        max_result: characters of a result that the policy reads; the rest is cut.
        system: content of a system message in front of every prompt, or None.
        **kwargs: for `LLMEnv`. `max_turns` is by default two more than `max_calls`.

    Raises:
        EnvContractError: a setting is out of its range, two tools have one name, or a tool has a
            parameter without a type.
    """

    def __init__(
        self,
        tasks: TaskSource | Sequence[Task],
        reward: RewardSpec = None,
        tools: Sequence[ToolSpec] = (),
        *,
        per_episode: PerEpisode | None = None,
        parser: str | Read | CallFormat = "hermes",
        describe: Describe = "template",
        max_calls: int = 8,
        tool_timeout: float = 10.0,
        on_parse_error: Literal["reply", "end"] = "reply",
        max_result: int = 10_000,
        system: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.format = call_format(parser)
        self.describe: Describe = describe
        self.on_parse_error = on_parse_error
        self.max_calls, self.tool_timeout, self.max_result = max_calls, tool_timeout, max_result
        _check_settings(self)
        self._preface = system
        self._listed = _by_name(tools)
        self._per_episode = per_episode
        if not self._listed and per_episode is None:
            raise EnvContractError("a ToolEnv has one tool at least; give tools=[...]")
        kwargs.setdefault("max_turns", max_calls + 2)
        super().__init__(tasks, reward, **kwargs)
        self._tools = self._listed
        self._use = ToolUse()
        self._count = 0

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools of the current episode, by name."""
        return self._tools

    def prompt(self, task: Task) -> Sequence[Message]:
        """Return the first messages, with the schemas of the tools where templates read them."""
        self._use, self._count = ToolUse(), 0
        self._tools = self._listed
        if self._per_episode is not None:
            added = _by_name(self._per_episode(task, self.np_random))
            self._tools = _merged(self._listed, added)
        messages = (
            (Message("user", task.prompt),) if isinstance(task.prompt, str) else tuple(task.prompt)
        )
        told = [self._preface] if self._preface is not None else []
        told += [self._described()] if self.describe == "system" else []
        if told:
            messages = _with_system("\n\n".join(told), messages)
        if self.describe == "template":
            schemas = tuple(tool.schema for tool in self._tools.values())
            messages = (replace(messages[0], tools=schemas), *messages[1:])
        return messages

    def reply(self, response: Completion) -> Reply:
        """Run the calls of a response; one without a call is the answer. A cut one runs nothing."""
        if response.finish_reason != "stop":
            return Reply()
        try:
            calls = list(self.format.read(str(response), self._tools))
        except ToolError as error:
            self._use = replace(self._use, malformed=self._use.malformed + 1)
            if self.on_parse_error == "end":
                return Reply(done=True, reason=StopReason.PARSE_ERROR)
            return Reply((self._answer(f"error: {error}", None),))
        if not calls:
            self._use = replace(self._use, answered=True)
            return Reply(done=True)
        messages, replies = zip(*(self._called(call) for call in calls), strict=True)
        return Reply(
            messages=messages,
            done=any(reply.done for reply in replies),
            reward=sum(reply.reward for reply in replies),
        )

    def state(self) -> ToolUse:
        """Return what was called so far."""
        return self._use

    def solve(self) -> str | None:
        """Return the next call of the task's solution, or behind the last one its answer."""
        calls = self.task.meta.get("calls", ())
        if self.format.write is None or not calls:
            return self.task.solution
        made = len(self._use.calls)
        if made < len(calls):
            entry = calls[made]
            return self.format.write(ToolCall(entry["name"], dict(entry["arguments"])))
        return self.task.solution

    def _called(self, call: ToolCall) -> tuple[Message, Reply]:
        """Run one call; return its result as a message, and the reply of a tool that gives one."""
        reply, is_failed = Reply(), False
        try:
            result = self._run(call)
        except ToolError as error:
            text, is_failed = f"error: {error}", True
        else:
            reply = reply if isinstance(result, str) else result
            text = result if isinstance(result, str) else _text_of(result)
        if len(text) > self.max_result:
            text = f"{text[: self.max_result]}... ({len(text)} characters, the rest is cut)"
        self._use = replace(
            self._use,
            calls=(*self._use.calls, call),
            results=(*self._use.results, text),
            failed=self._use.failed + is_failed,
        )
        return self._answer(text, call), reply

    def _run(self, call: ToolCall) -> str | Reply:
        if len(self._use.calls) >= self.max_calls:
            raise ToolError(f"no call is left of {self.max_calls}: answer now")
        tool = self._tools.get(call.name)
        if tool is None:
            names = ", ".join(self._tools)
            raise ToolError(f"there is no tool {call.name!r}; there is {names}")
        return tool.call(call.arguments, self.tool_timeout)

    def _answer(self, text: str, call: ToolCall | None) -> Message:
        self._count += 1
        number = (call.id if call is not None else "") or f"call{self._count:05d}"
        name = None if call is None else call.name
        return Message("tool", text, name=name, tool_call_id=number)

    def _described(self) -> str:
        schemas = [json.dumps(tool.schema, ensure_ascii=False) for tool in self._tools.values()]
        return "\n".join(["You may call these functions:", *schemas, "", self.format.instructions])


def _check_settings(env: ToolEnv) -> None:
    if env.describe not in ("template", "system", "none"):
        raise EnvContractError(f"describe is template, system or none; got {env.describe!r}")
    if env.on_parse_error not in ("reply", "end"):
        raise EnvContractError(f"on_parse_error is reply or end; got {env.on_parse_error!r}")
    for name in ("max_calls", "tool_timeout", "max_result"):
        if not getattr(env, name) > 0:
            raise EnvContractError(f"{name} must be above 0; got {getattr(env, name)}")
    if env.describe == "system" and not env.format.instructions:
        raise EnvContractError(
            "describe system tells how calls are written, which a parser of your own does not say. "
            "Give a CallFormat with instructions, or say it in `system` and set describe to none"
        )


def _by_name(specs: Sequence[ToolSpec]) -> dict[str, Tool]:
    if isinstance(specs, str | Mapping) or callable(specs):
        raise EnvContractError(f"tools is a list; got {specs!r:.60}")
    tools = [tool for spec in specs for tool in Tool.of(spec)]
    return _merged({}, {str(i): tool for i, tool in enumerate(tools)})


def _merged(listed: Mapping[str, Tool], added: Mapping[str, Tool]) -> dict[str, Tool]:
    """Return tools by name.

    Raises:
        EnvContractError: two have one name.
    """
    merged: dict[str, Tool] = {}
    for tool in [*listed.values(), *added.values()]:
        if tool.name in merged:
            raise EnvContractError(f"two tools are named {tool.name!r}; give one another name")
        merged[tool.name] = tool
    return merged


def _with_system(text: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put text into a system message at the front, before what one says that is there."""
    if messages[0].role != "system":
        return (Message("system", text), *messages)
    return (replace(messages[0], content=f"{text}\n\n{messages[0].content}"), *messages[1:])


def _text_of(reply: Reply) -> str:
    if isinstance(reply.messages, str):
        return reply.messages
    return "\n\n".join(message.content for message in reply.messages)
