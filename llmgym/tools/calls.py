"""How a policy writes calls of tools: the formats that models are trained on, read and written.

| name   | a call                                                                            |
| ------ | --------------------------------------------------------------------------------- |
| hermes | `<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>`, as Qwen's         |
| json   | `{"name": "add", "arguments": {"a": 1}}` as the whole response, as Llama 3's       |
| xml    | `<function=add><parameter=a>1</parameter></function>`, as Qwen's coders'           |
| python | a block of Python with nothing but calls; it is parsed and never run               |

A response without a call is an answer. A response that begins a call and does not finish it, or
writes it wrongly, is malformed: `ToolError` says how.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from llmgym.errors import EnvContractError, ToolError
from llmgym.messages import ToolCall
from llmgym.tools.tool import Tool

Read = Callable[[str, Mapping[str, Tool]], Sequence[ToolCall]]
Write = Callable[[ToolCall], str]

TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
FENCED_JSON = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)
FENCED_PYTHON = re.compile(r"```(?:python|py|tool_code)[ \t]*\n(.*?)```", re.DOTALL)
FUNCTION = re.compile(
    r"<function=(?P<a>[\w.-]+)>(?P<b>.*?)</function>"
    r'|<invoke name="(?P<c>[\w.-]+)">(?P<d>.*?)</invoke>',
    re.DOTALL,
)
PARAMETER = re.compile(
    r"<parameter=(?P<a>\w+)>(?P<b>.*?)</parameter>"
    r'|<parameter name="(?P<c>\w+)">(?P<d>.*?)</parameter>',
    re.DOTALL,
)
WRAPPERS = re.compile(r"</?(?:tool_call|function_calls)>")


@final
@dataclass(frozen=True, slots=True)
class CallFormat:
    """A way to write calls.

    Attributes:
        name: of the format.
        read: returns the calls of a response, given the tools by name; raises `ToolError` where one
            is malformed.
        write: returns a call as a policy writes it; demonstrations need it.
        instructions: tells a policy how to call, where no chat template does.
    """

    name: str
    read: Read
    write: Write | None = field(default=None)
    instructions: str = ""


def call_format(parser: str | Read | CallFormat) -> CallFormat:
    """Return the format that a setting means: a name of `FORMATS`, or a function of your own.

    Raises:
        EnvContractError: there is no format of this name.
    """
    if isinstance(parser, CallFormat):
        return parser
    if not isinstance(parser, str):
        return CallFormat(getattr(parser, "__name__", "calls"), parser)
    if parser not in FORMATS:
        raise EnvContractError(
            f"parser is one of {', '.join(FORMATS)}, or a function of a response and the tools; "
            f"got {parser!r}"
        )
    return FORMATS[parser]


def read_hermes(text: str, tools: Mapping[str, Tool]) -> list[ToolCall]:
    """Read every `<tool_call>` with a JSON object inside; text may stand around them."""
    calls = [_json_call(inside) for inside in TAGGED.findall(text)]
    rest = TAGGED.sub("", text)
    if "<tool_call>" in rest or "</tool_call>" in rest:
        raise ToolError("a call begins with <tool_call> and ends with </tool_call>")
    return calls


def write_hermes(call: ToolCall) -> str:
    """Write a call between its two tags."""
    return f"<tool_call>{write_json(call)}</tool_call>"


def read_json(text: str, tools: Mapping[str, Tool]) -> list[ToolCall]:
    """Read a response that is one JSON call, or a list of them, bare or in a fence.

    JSON that names no tool is an answer.
    """
    stripped = text.strip()
    fence = FENCED_JSON.match(stripped)
    inside = fence[1].strip() if fence else stripped
    if not inside.startswith(("{", "[")):
        return []
    try:
        value = json.loads(inside)
    except (ValueError, RecursionError) as error:
        if '"name"' not in inside:
            return []
        raise ToolError(f"the call is not JSON: {error}") from error
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, dict) and "name" in item for item in values):
        return []
    return [_call_of(item) for item in values]


def write_json(call: ToolCall) -> str:
    """Write a call as a JSON object."""
    value = {"name": call.name, "arguments": dict(call.arguments)}
    return json.dumps(value, ensure_ascii=False)


def read_xml(text: str, tools: Mapping[str, Tool]) -> list[ToolCall]:
    """Read functions and their parameters as elements, or as `<invoke name=...>`.

    A value is text, which `Tool.call` reads as JSON where its schema admits no text. One line break
    at its start and at its end belongs to the layout.
    """
    calls = []
    for match in FUNCTION.finditer(text):
        name, inside = match["a"] or match["c"], match["b"] or match["d"] or ""
        elements = PARAMETER.findall(inside)
        left = PARAMETER.sub("", inside).strip()
        if left:
            raise ToolError(f"between the parameters of {name} there is {left!r:.40}")
        arguments = {
            a or c: (b if a else d).removeprefix("\n").removesuffix("\n") for a, b, c, d in elements
        }
        calls.append(ToolCall(name=name, arguments=arguments))
    rest = FUNCTION.sub("", text)
    if re.search(r"</?function[=>]|<invoke |</invoke>|</?parameter", rest):
        raise ToolError(
            "write <function=NAME><parameter=NAME>VALUE</parameter></function>, each part closed"
        )
    if not calls and WRAPPERS.search(rest):
        raise ToolError("there is no <function=NAME> inside of the call")
    return calls


def write_xml(call: ToolCall) -> str:
    """Write a call as elements; text as it is, other values as JSON."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in call.arguments.items()
    }
    parts = (f"<parameter={name}>\n{text}\n</parameter>" for name, text in texts.items())
    return f"<function={call.name}>{''.join(parts)}</function>"


def read_python(text: str, tools: Mapping[str, Tool]) -> list[ToolCall]:
    """Read the calls in blocks of Python, whose arguments are literals; nothing is run.

    Arguments without a name get those of the schema, in its order. A block that names no tool is
    part of an answer.
    """
    blocks = FENCED_PYTHON.findall(text)
    if len(re.findall(r"```(?:python|py|tool_code)\b", text)) > len(blocks):
        raise ToolError("a block of Python is not closed by ```")
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, tools))})\s*\(") if tools else None
    calls = []
    for block in blocks:
        try:
            tree = ast.parse(block)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if named is None or not named.search(block):
                continue
            raise ToolError(f"the block is not Python: {error}") from error
        statements = [node.value if isinstance(node, ast.Expr) else node for node in tree.body]
        if any(_called_name(node) in tools for node in statements) or (
            named is not None and named.search(block)
        ):
            calls += [_python_call(node, tools) for node in statements]
    return calls


def write_python(call: ToolCall) -> str:
    """Write a call as a block of Python."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"```python\n{call.name}({arguments})\n```"


FORMATS = {
    "hermes": CallFormat(
        "hermes",
        read_hermes,
        write_hermes,
        "To call a function, write a JSON object with its name and arguments between tags:\n"
        '<tool_call>{"name": NAME, "arguments": {NAME: VALUE}}</tool_call>',
    ),
    "json": CallFormat(
        "json",
        read_json,
        write_json,
        "To call a function, answer with a JSON object and nothing else:\n"
        '{"name": NAME, "arguments": {NAME: VALUE}}',
    ),
    "xml": CallFormat(
        "xml",
        read_xml,
        write_xml,
        "To call a function, write:\n<function=NAME><parameter=NAME>VALUE</parameter></function>",
    ),
    "python": CallFormat(
        "python",
        read_python,
        write_python,
        "To call a function, write a block of Python with the call and nothing else:\n"
        "```python\nNAME(NAME=VALUE)\n```",
    ),
}
"""The formats by name."""


def _json_call(inside: str) -> ToolCall:
    try:
        value = json.loads(inside)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the call is not JSON: {error}") from error
    return _call_of(value)


def _call_of(value: Any) -> ToolCall:  # noqa: ANN401 - any JSON
    name = value.get("name") if isinstance(value, dict) else None
    arguments = value.get("arguments", value.get("parameters", {})) if name is not None else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ToolError('a call is {"name": NAME, "arguments": {NAME: VALUE}}')
    return ToolCall(name=name, arguments=arguments)


def _called_name(node: ast.AST) -> str | None:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return node.func.id if is_call else None  # type: ignore[union-attr]


def _python_call(node: ast.AST, tools: Mapping[str, Tool]) -> ToolCall:
    name = _called_name(node)
    if name is None or not isinstance(node, ast.Call):
        raise ToolError("a block of Python holds calls of functions and nothing else")
    names = list(tools[name].parameters.get("properties", {})) if name in tools else []
    if len(node.args) > len(names):
        raise ToolError(f"{name} takes {len(names)} arguments, got {len(node.args)} without a name")
    try:
        values = [ast.literal_eval(argument) for argument in node.args]
        arguments = dict(zip(names, values, strict=False))
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in arguments:
                raise ToolError(f"{name} got an argument twice, or by **")
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ToolError(f"the arguments of {name} are literals: text, numbers, lists") from error
    return ToolCall(name=name, arguments=arguments)
