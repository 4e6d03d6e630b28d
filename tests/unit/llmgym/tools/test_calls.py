"""Formats of calls: what is written is read again, and what is malformed is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.errors import EnvContractError, ToolError
from llmgym.messages import ToolCall
from llmgym.tools import FORMATS, Tool
from llmgym.tools.calls import call_format
from tests.unit.llmgym.tools.functions import add, describe

ADD = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
ELEMENTS = "<parameter=a>\n1\n</parameter>\n<parameter=b>2</parameter>"
TOOLS = {tool.name: tool for tool in (Tool(add), Tool(describe))}
# An element's text cannot hold its own end, and one line break at either side is layout.
TEXT = st.text().filter(lambda text: "</parameter" not in text and "\r" not in text)
CALLS = st.one_of(
    st.builds(lambda a, b: ToolCall("add", {"a": a, "b": b}), st.integers(), st.integers()),
    st.builds(
        lambda text, tags: ToolCall("describe", {"text": text, "style": "short", "tags": tags}),
        TEXT,
        st.none() | st.lists(TEXT, max_size=3),
    ),
)


def read(name, text):
    return FORMATS[name].read(text, TOOLS)


@pytest.mark.parametrize("name", FORMATS)
@given(call=CALLS)
def test_a_call_that_is_written_is_read_again(name, call):
    text = FORMATS[name].write(call)
    if name in ("hermes", "python") and ("</tool_call>" in str(call) or "```" in str(call)):
        return
    (result,) = read(name, text)
    assert result.name == call.name
    assert TOOLS[call.name].call(result.arguments) == TOOLS[call.name].call(call.arguments)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "The answer is {x}.",
        "a < b > c",
        "name(3)",
        '{"answer": 4}',
        "[1, 2]",
        "```\nx\n```",
    ],
)
def test_a_response_without_a_call_is_an_answer(name, text):
    assert list(read(name, text)) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hermes", "<tool_call>{", "begins with <tool_call> and ends with"),
        ("hermes", "</tool_call>", "begins with <tool_call> and ends with"),
        ("hermes", "<tool_call>add(1)</tool_call>", "not JSON"),
        ("hermes", '<tool_call>{"name": "add"}</tool_call><tool_call>', "begins with"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "a call is"),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "a call is"),
        ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>", "not JSON"),
        ("json", '{"name": "add", "arguments": {', "not JSON"),
        ("json", '{"name": 3, "arguments": {}}', "a call is"),
        ("json", '```json\n{"name": "add", "arguments": 1}\n```', "a call is"),
        ("xml", "<function=add><parameter=a>1</parameter>", "each part closed"),
        ("xml", "<function=add>1</function>", "between the parameters of add"),
        ("xml", "<tool_call>add</tool_call>", "no <function=NAME>"),
        ("xml", "<function=add><parameter=a>1</function>", "between the parameters"),
        ("python", "```python\nadd(1)", "not closed"),
        ("python", "```python\nadd(1\n```", "not Python"),
        ("python", "```python\nx = add(1)\n```", "calls of functions and nothing else"),
        ("python", "```python\nadd(add(1))\n```", "are literals"),
        ("python", "```python\nadd(1, a=2)\n```", "twice"),
        ("python", "```python\nadd(1, 2, 3)\n```", "takes 2 arguments"),
        ("python", "```python\nadd(*[1])\n```", "are literals"),
        ("python", "```python\nimport os\nadd(1)\n```", "calls of functions and nothing else"),
        ("python", "```python\n__import__('os').system('x'), add(1)\n```", "nothing else"),
    ],
)
def test_a_malformed_call_is_named_and_nothing_of_it_is_run(name, text, message):
    with pytest.raises(ToolError, match=message):
        read(name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", f"First.\n<tool_call>\n{ADD}\n</tool_call>"),
        ("hermes", '<tool_call>{"name": "add", "parameters": "{\\"a\\": 3}"}</tool_call>'),
        ("json", ' {"name": "add", "parameters": {"a": 1, "b": 2}} '),
        ("json", '```json\n[{"name": "add", "arguments": {"a": "1", "b": 2}}]\n```'),
        ("xml", f"<tool_call>\n<function=add>\n{ELEMENTS}\n</function>\n</tool_call>"),
        ("xml", '<invoke name="add"><parameter name="a">3</parameter></invoke>'),
        ("python", "I add.\n```python\nadd(1, b=2)\n```"),
        ("python", "```tool_code\nadd(1, 2)\n```\nand\n```python\nprint('no tool')\n```"),
    ],
)
def test_calls_are_read_as_models_write_them(name, text):
    (call,) = read(name, text)
    assert (call.name, TOOLS["add"].call(call.arguments)) == ("add", "3")


@pytest.mark.parametrize("name", FORMATS)
def test_several_calls_of_a_response_are_read_in_order(name):
    calls = [ToolCall("add", {"a": a, "b": 0}) for a in range(3)]
    if name == "json":
        text = f"[{', '.join(map(FORMATS[name].write, calls))}]"
    else:
        text = "\n".join(map(FORMATS[name].write, calls))
    assert [int(call.arguments["a"]) for call in read(name, text)] == [0, 1, 2]


def test_a_parser_is_a_name_or_a_function():
    def mine(text, tools):
        return [ToolCall("add", {"a": len(text)})]

    assert call_format(mine).read("abc", TOOLS)[0].arguments == {"a": 3}
    assert call_format(FORMATS["xml"]) is call_format("xml")
    with pytest.raises(EnvContractError, match="parser is one of hermes, json, xml, python"):
        call_format("yaml")
