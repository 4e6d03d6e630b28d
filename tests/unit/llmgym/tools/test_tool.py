"""Tools: functions, processes that are killed, and tools of other libraries."""

import importlib
import os
import pickle
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmgym.errors import EnvContractError, PluginError, ToolError
from llmgym.limits import CallLimit, within
from llmgym.messages import Reply
from llmgym.tools import Tool
from tests.unit.llmgym.tools import functions


def test_a_tool_is_called_by_name_and_answers_with_text():
    tool = Tool(functions.add)
    assert (tool.name, tool.description) == ("add", "Add two integers.")
    assert tool.call({"a": 1, "b": "2"}) == "3"
    assert Tool(functions.describe, name="tell").schema["function"]["name"] == "tell"
    assert (
        Tool(dict, name="make", parameters={"type": "object"}).call({"a": "\u00e9"})
        == '{"a": "\u00e9"}'
    )
    assert Tool(functions.submit).call({"answer": "right"}) == Reply("noted", done=True, reward=0.5)


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (functions.fail, {"message": "no such row"}, "KeyError: 'no such row'"),
        (functions.add, {"b": 1}, "the argument 'a' is missing"),
        (functions.add, {"a": 1, "c": 1}, "there is no argument 'c'"),
        (functions.sleep, {"seconds": 30}, "sleep gave no result within 0.3 s"),
        (functions.leave, {"code": 3}, "SystemExit: 3|ended its process"),
    ],
)
def test_a_call_that_fails_says_why_and_the_next_one_works(isolated, function, arguments, message):
    tool, began = Tool(function, isolated=isolated), time.monotonic()
    with pytest.raises(ToolError, match=message):
        tool.call(arguments, timeout=0.3 if function is functions.sleep else 20.0)
    assert time.monotonic() - began < 15
    if function is functions.sleep:
        assert tool.call({"seconds": 0}, timeout=20.0) == "awake"


def test_a_late_call_in_a_thread_is_answered_too():
    results = []

    def call():
        try:
            results.append(Tool(functions.sleep).call({"seconds": 5}, timeout=0.2))
        except ToolError as error:
            results.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(3)
    assert results == ["sleep gave no result within 0.2 s"]


def test_the_limit_of_a_call_leaves_that_of_the_environment_in_force():
    def step():
        with pytest.raises(ToolError):
            Tool(functions.sleep).call({"seconds": 5}, timeout=0.2)
        return "the environment continues"

    assert within(CallLimit(30.0), step) == "the environment continues"


def test_an_isolated_tool_runs_elsewhere_and_is_gone_after_a_late_call():
    tool = Tool(functions.process_id, isolated=True)
    first = int(tool.call({}))
    assert first != os.getpid()
    assert int(tool.call({})) == first
    sleeper = Tool(functions.sleep, isolated=True)
    sleeper.call({"seconds": 0})
    pid = sleeper._runner._process._process.pid
    with pytest.raises(ToolError):
        sleeper.call({"seconds": 60}, timeout=0.2)
    assert not Path(f"/proc/{pid}").exists()


def test_a_crash_of_an_isolated_tool_is_an_answer():
    with pytest.raises(ToolError, match="ended its process"):
        Tool(functions.abort, isolated=True).call({})


def test_a_function_that_no_process_finds_is_refused():
    def local(a: int) -> int:
        return a

    with pytest.raises(EnvContractError, match="Define it at the top of a module"):
        Tool(local, isolated=True)


def test_tools_pickle():
    for isolated in (False, True):
        tool = Tool(functions.add, isolated=isolated)
        tool.call({"a": 1})
        assert pickle.loads(pickle.dumps(tool)).call({"a": 1, "b": 2}) == "3"


def test_a_setting_means_tools():
    (tool,) = Tool.of("tests.unit.llmgym.tools.functions:add")
    assert tool.call({"a": 2}) == "2"
    assert Tool.of(tool) == [tool]
    with pytest.raises(EnvContractError, match="a tool is an address, or"):
        Tool.of({"mpc": ["x"]})
    with pytest.raises(EnvContractError, match="a tool is a function"):
        Tool(3)
    with pytest.raises(EnvContractError, match="is async"):
        Tool(functions.later)
    with pytest.raises(PluginError, match="has no 'ad'; did you mean add"):
        Tool.of("tests.unit.llmgym.tools.functions:ad")


@dataclass
class LikeSmolagents:
    """The attributes of `smolagents.Tool` that are read."""

    name: str = "weather"
    description: str = "Tell the weather."
    inputs: dict = field(
        default_factory=lambda: {
            "city": {"type": "string", "description": "a city"},
            "days": {"type": "integer", "description": "ahead", "nullable": True},
            "extra": {"type": "any", "description": "whatever"},
        }
    )

    def __call__(self, city, days=1, extra=None):
        return f"{city} {days} {extra}"


def test_a_tool_of_smolagents_keeps_name_description_and_inputs():
    tool = Tool.from_smolagents(LikeSmolagents())
    assert tool.schema["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "a city"},
            "days": {"type": ["integer", "null"], "description": "ahead"},
            "extra": {"description": "whatever"},
        },
        "required": ["city", "extra"],
    }
    assert tool.call({"city": "Bern", "days": "2", "extra": [1]}) == "Bern 2 [1]"
    with pytest.raises(EnvContractError, match="which no text can give"):
        Tool.from_smolagents(LikeSmolagents(inputs={"x": {"type": "image", "description": ""}}))
    with pytest.raises(EnvContractError, match="has name, description and inputs"):
        Tool.from_smolagents(functions.add)


@pytest.mark.smolagents
def test_a_real_tool_of_smolagents_is_called():
    smolagents = importlib.import_module("smolagents")

    class Double(smolagents.Tool):
        name, description, output_type = "double", "Double a number.", "integer"
        inputs = {"n": {"type": "integer", "description": "a number"}}  # noqa: RUF012 - their form

        def forward(self, n: int):
            return 2 * n

    tool = Tool.from_smolagents(Double())
    assert tool.call({"n": "21"}) == "42"
    with pytest.raises(ToolError, match="there is no argument 'm'"):
        tool.call({"n": 1, "m": 1})
    made = Tool.from_smolagents(smolagents.tool(functions.add))
    assert (made.name, made.call({"a": 1, "b": 2})) == ("add", "3")
