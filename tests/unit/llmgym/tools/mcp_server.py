"""An MCP server by stdio, written with the library itself; for tests."""

import os
import time

try:
    from mcp.server import MCPServer as Server
except ImportError:  # the library before its version 2
    from mcp.server.fastmcp import FastMCP as Server

server = Server("toys")
counts = {"calls": 0}


@server.tool()
def add(a: int, b: int = 0) -> int:
    """Add two integers."""
    return a + b


@server.tool()
def count() -> int:
    """Count the calls of this tool."""
    counts["calls"] += 1
    return counts["calls"]


@server.tool()
def fail(message: str) -> str:
    """Raise an error."""
    raise KeyError(message)


@server.tool()
def sleep(seconds: float) -> str:
    """Wait."""
    time.sleep(seconds)
    return "awake"


@server.tool()
def leave() -> str:
    """End the server."""
    os._exit(3)


@server.tool()
def process_id() -> int:
    """Return the id of the server's process."""
    return os.getpid()


if __name__ == "__main__":
    server.run("stdio")
