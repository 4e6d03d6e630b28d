"""Tools that a policy may call: functions, their schemas, the formats of calls, the environment."""

from llmgym.tools.calls import FORMATS, CallFormat
from llmgym.tools.env import ToolEnv, ToolUse
from llmgym.tools.tool import Tool

__all__ = ["FORMATS", "CallFormat", "Tool", "ToolEnv", "ToolUse"]
