"""A tool: a function that a policy may call, its JSON schema, and how it is run."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, final, runtime_checkable

from llmgym.addresses import load
from llmgym.errors import EnvContractError, LLMGymError, ToolError
from llmgym.limits import CallLimit, LateCall, within
from llmgym.messages import Reply
from llmgym.tools.mcp_servers import McpServer, connect
from llmgym.tools.process import ToolProcess
from llmgym.tools.schema import fitted, signature_schema

SMOLAGENTS_TYPES = {"any": {}, "image": None, "audio": None}
"""Types of smolagents that are none of JSON Schema; those without a schema are refused."""


@runtime_checkable
class Runner(Protocol):
    """What runs a tool, with a time limit of its own."""

    def run(self, arguments: Mapping[str, Any], timeout: float | None) -> Any:  # noqa: ANN401
        """Return the result; raises `LateCall`, or whatever the tool raised."""
        ...


@final
class InThisProcess:
    """Runs a function where the environment runs.

    In the main thread a late call is interrupted; in another one its thread is left behind.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def run(self, arguments: Mapping[str, Any], timeout: float | None) -> Any:  # noqa: ANN401
        """Call the function."""
        return within(CallLimit(timeout), lambda: self.function(**arguments))


@final
class Tool:
    """A function that a policy may call.

    Args:
        function: takes its arguments by name and returns text or anything that JSON holds. One that
            returns an `llmgym.Reply` answers as an environment does: it pays, and may end the
            episode.
        name: None for the function's own.
        description: None for the docstring, above `Args:`.
        parameters: JSON schema of the arguments; None for the one of signature and docstring.
        isolated: run it in a process of its own, which ends with a call that is late. Its result
            then travels as JSON, so that it cannot be a `Reply`.

    Raises:
        EnvContractError: a parameter has no type, a type that JSON cannot hold, or no name.
    """

    def __init__(
        self,
        function: Callable[..., Any] | Runner,
        *,
        name: str | None = None,
        description: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        isolated: bool = False,
    ) -> None:
        if isinstance(function, Runner):
            if name is None or parameters is None or isolated:
                raise EnvContractError("a Runner needs a name and parameters, and isolates itself")
            self._runner: Runner = function
            self.name: str = name
        else:
            if not callable(function):
                raise EnvContractError(f"a tool is a function; received {function!r:.60}")
            if inspect.iscoroutinefunction(function):
                raise EnvContractError(
                    f"the tool {function.__name__} is async, and tools are called one at a time. "
                    "Give a function that returns its result"
                )
            name = name or str(getattr(function, "__name__", type(function).__name__))
            if parameters is None:
                about, parameters = signature_schema(function)
                description = about if description is None else description
            self.name = name
            self._runner = ToolProcess(function) if isolated else InThisProcess(function)
        self.description = description or ""
        self.parameters = dict(parameters)

    def __repr__(self) -> str:
        return f"Tool({self.name}({', '.join(self.parameters.get('properties', {}))}))"

    @property
    def schema(self) -> dict[str, Any]:
        """The form that chat templates read."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}

    def call(self, arguments: Mapping[str, Any], timeout: float | None = None) -> str | Reply:
        """Run the tool; return its result as text, or the `Reply` that it is.

        Args:
            arguments: by name, as JSON values.
            timeout: in seconds; None for no limit.

        Raises:
            ToolError: the arguments do not fit, it raised, or it was late; says so in a line.
            LLMGymError: the tool itself is broken, such as a server that ended: no answer of it
                means anything.
        """
        try:
            fitting = fitted(dict(arguments), self.parameters)
        except ValueError as error:
            raise ToolError(str(error)) from error
        try:
            result = self._runner.run(fitting, timeout)
        except LateCall as late:
            if timeout is None:  # the limit of the environment's own call
                raise
            raise ToolError(f"{self.name} gave no result within {timeout:g} s") from late
        except LLMGymError:
            raise
        except (Exception, SystemExit) as error:
            first = next(iter(str(error).splitlines()), "")
            raise ToolError(f"{type(error).__name__}: {first}" if first else repr(error)) from error
        return result if isinstance(result, Reply) else as_text(result)

    @classmethod
    def of(cls, tool: "ToolSpec") -> list[Self]:
        """Return the tools that a setting means.

        Args:
            tool: a `Tool`, a function, its address "package.module:name" or "file.py:name", or the
                command of an MCP server, {"mcp": [COMMAND, ARGUMENT, ...]}, which may have several.

        Raises:
            EnvContractError: it is none of these.
            PluginError: there is nothing at the address.
        """
        if isinstance(tool, cls):
            return [tool]
        if isinstance(tool, str):
            return cls.of(load(tool))
        if isinstance(tool, Mapping):
            command = tool.get("mcp")
            if set(tool) != {"mcp"} or not isinstance(command, Sequence) or not command:
                raise EnvContractError(
                    f'a tool is an address, or {{"mcp": [COMMAND, ...]}}; got {dict(tool)}'
                )
            line = [command] if isinstance(command, str) else list(command)
            return cls.from_mcp(line[0], line[1:])
        assert not isinstance(tool, Tool)  # this class is final
        return [cls(tool)]

    @classmethod
    def from_smolagents(cls, tool: Any) -> Self:  # noqa: ANN401 - a library that is not imported
        """Return the tool that a `smolagents.Tool` is.

        Raises:
            EnvContractError: it is none, or has an input that text cannot give, such as an image.
        """
        try:
            name, about, inputs = tool.name, tool.description, dict(tool.inputs)
        except (AttributeError, TypeError) as error:
            raise EnvContractError(
                f"a tool of smolagents has name, description and inputs; got {tool!r:.60}"
            ) from error
        properties: dict[str, Any] = {}
        for key, entry in inputs.items():
            kinds = [entry["type"]] if isinstance(entry["type"], str) else list(entry["type"])
            if any(SMOLAGENTS_TYPES.get(kind, {}) is None for kind in kinds):
                raise EnvContractError(
                    f"input {key!r} of {name} is {kinds}, which no text can give"
                )
            kinds += ["null"] if entry.get("nullable") and "null" not in kinds else []
            typed = {} if "any" in kinds else {"type": kinds[0] if len(kinds) == 1 else kinds}
            properties[key] = {**typed, "description": entry.get("description", "")}
        required = [key for key, entry in inputs.items() if not entry.get("nullable")]
        schema = {"type": "object", "properties": properties, "required": required}
        return cls(tool, name=name, description=about, parameters=schema)

    @classmethod
    def from_mcp(
        cls, command: str, arguments: Sequence[str] = (), *, env: Mapping[str, str] | None = None
    ) -> list[Self]:
        """Return the tools of an MCP server, which is started and spoken to by its stdio.

        Equal commands share one server in a process, so that all slots of a vector do, and what a
        server remembers is seen by all of them.

        Args:
            command: of the server.
            arguments: of the command.
            env: further variables of its environment.

        Raises:
            MissingExtraError: the library `mcp` is not installed.
            ToolServerError: the server does not start.
        """
        server: McpServer = connect(command, tuple(arguments), tuple(sorted((env or {}).items())))
        return [
            cls(
                server.tool(entry["name"]),
                name=entry["name"],
                description=entry.get("description") or "",
                parameters=entry["inputSchema"],
            )
            for entry in server.listed()
        ]


ToolSpec = Tool | Callable[..., Any] | str | Mapping[str, Any]


def as_text(result: object) -> str:
    """Return what a policy reads of a result: text as it is, anything else as JSON."""
    return (
        result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
    )
