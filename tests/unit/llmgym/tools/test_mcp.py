"""Tools of an MCP server by stdio: a real server, in a process of its own."""

import pickle
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmgym.errors import MissingExtraError, ToolError, ToolServerError
from llmgym.tools import Tool

SERVER = str(Path(__file__).with_name("mcp_server.py"))


@pytest.fixture
def tools():
    listed = {tool.name: tool for tool in Tool.from_mcp(sys.executable, ["-P", SERVER])}
    yield listed
    listed["add"]._runner._server.close()


@pytest.mark.mcp
def test_tools_of_a_server_have_their_schemas_and_are_called(tools):
    schema = tools["add"].schema["function"]
    assert schema["description"] == "Add two integers."
    assert schema["parameters"]["properties"]["a"]["type"] == "integer"
    assert schema["parameters"]["required"] == ["a"]
    assert tools["add"].call({"a": "40", "b": 2}) == "42"
    assert [tools["count"].call({}) for _ in range(3)] == ["1", "2", "3"]


@pytest.mark.mcp
def test_equal_commands_share_a_server_and_a_pickled_tool_finds_it(tools):
    again = {tool.name: tool for tool in Tool.from_mcp(sys.executable, ["-P", SERVER])}
    pid = tools["process_id"].call({})
    assert again["process_id"].call({}) == pid
    assert pickle.loads(pickle.dumps(tools["process_id"])).call({}) == pid


@pytest.mark.mcp
def test_an_error_of_a_tool_is_an_answer(tools):
    with pytest.raises(ToolError, match="Error executing tool fail"):
        tools["fail"].call({"message": "no such row"})
    with pytest.raises(ToolError, match="the argument 'a' is missing"):
        tools["add"].call({})
    assert tools["add"].call({"a": 1}) == "1"


@pytest.mark.mcp
def test_a_late_call_is_an_answer(tools):
    began = time.monotonic()
    with pytest.raises(ToolError, match=r"sleep gave no result within 0\.5 s"):
        tools["sleep"].call({"seconds": 8}, timeout=0.5)
    assert time.monotonic() - began < 5


@pytest.mark.mcp
def test_a_server_that_ended_is_an_error_and_is_started_anew(tools):
    pid = tools["process_id"].call({}, timeout=60.0)
    with pytest.raises(ToolServerError, match="ended or broke off"):
        tools["leave"].call({}, timeout=20.0)
    assert tools["process_id"].call({}, timeout=60.0) != pid


@pytest.mark.mcp
def test_a_server_that_does_not_start_is_named():
    with pytest.raises(ToolServerError, match=r"did not start.*Try the command"):
        Tool.from_mcp("/no/such/server")
    with pytest.raises(ToolServerError, match="did not start"):
        Tool.from_mcp(sys.executable, ["-c", "raise SystemExit(3)"])


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingExtraError, match=r'pip install "llmgym-rl\[mcp\]"'):
        Tool.from_mcp("anything", ["once"])
    assert find_spec("llmgym.tools.mcp_servers") is not None
