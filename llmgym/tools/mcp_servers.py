"""Tools of MCP servers, spoken to by stdio; the one place that imports the library `mcp`.

A server is a process of its own. It is started at its first use, with an event loop in a thread for
it alone, and started anew where it ended. It ends with this process.
"""

import asyncio
import atexit
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateFuture
from functools import lru_cache
from typing import Any, final

from llmgym.errors import MissingExtraError, ToolError, ToolServerError
from llmgym.limits import LateCall

START_SECONDS = 60.0
END_SECONDS = 5.0


@final
class McpTool:
    """One tool of a server.

    Args:
        server: that has it.
        name: of the tool.
    """

    def __init__(self, server: "McpServer", name: str) -> None:
        self._server, self._name = server, name

    def run(self, arguments: Mapping[str, Any], timeout: float | None) -> str:
        """Call it.

        Raises:
            LateCall: there is no result in time.
            ToolError: the tool answered with an error; its text.
            ToolServerError: the server ended.
        """
        return self._server.call(self._name, arguments, timeout)


@final
class McpServer:
    """An MCP server and the session with it.

    Args:
        command: that starts it.
        arguments: of the command.
        env: further variables of its environment.
    """

    def __init__(
        self, command: str, arguments: tuple[str, ...], env: tuple[tuple[str, str], ...]
    ) -> None:
        self._spec = (command, arguments, env)
        self._lock = threading.Lock()
        self._session: _Session | None = None

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Rebuild from the command: a copy in another process starts its own server."""
        return connect, self._spec

    def tool(self, name: str) -> McpTool:
        """Return one of its tools."""
        return McpTool(self, name)

    def listed(self) -> list[dict[str, Any]]:
        """Return name, description and inputSchema of every tool.

        Raises:
            MissingExtraError: the library `mcp` is not installed.
            ToolServerError: the server does not start, or does not answer.
        """
        session = self._started()
        return self._result(session.submit(session.listed()), START_SECONDS)

    def call(self, name: str, arguments: Mapping[str, Any], timeout: float | None) -> str:
        """Call a tool and return the text of its result.

        Raises:
            LateCall: there is no result in time.
            ToolError: the tool answered with an error; its text.
            ToolServerError: the server ended.
        """
        session = self._started()
        is_error, text = self._result(session.submit(session.call(name, dict(arguments))), timeout)
        if is_error:
            raise ToolError(text)
        return text

    def close(self) -> None:
        """End the server; the next call starts it anew."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _started(self) -> "_Session":
        with self._lock:
            if self._session is None or not self._session.is_alive:
                self._session = _Session(*self._spec)
            return self._session

    def _result(self, future: "Future[Any]", timeout: float | None) -> Any:  # noqa: ANN401
        try:
            return future.result(timeout)
        except LateFuture:
            future.cancel()
            raise LateCall(f"no result within {timeout} s") from None
        except LateCall:
            future.cancel()
            raise
        except Exception as error:
            self.close()
            raise ToolServerError(
                f"the MCP server {' '.join((self._spec[0], *self._spec[1]))} ended or broke off: "
                f"{error!r:.200}"
            ) from error


class _Session:
    """A started server, and the thread with the event loop that it is spoken to on."""

    def __init__(
        self, command: str, arguments: tuple[str, ...], env: tuple[tuple[str, str], ...]
    ) -> None:
        try:
            import mcp  # pyright: ignore[reportMissingImports] - an extra
        except ImportError as error:
            message = 'tools of MCP servers need mcp: pip install "llmgym-rl[mcp]"'
            raise MissingExtraError(message) from error
        self._mcp = mcp
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._client: Any = None
        self._ready: Future[None] = Future()
        parameters = mcp.StdioServerParameters(
            command=command, args=list(arguments), env=dict(env) or None
        )
        self._thread = threading.Thread(
            target=self._serve, args=(parameters,), daemon=True, name=f"mcp {command}"
        )
        self._thread.start()
        atexit.register(self.close)
        try:
            self._ready.result(START_SECONDS)
        except (Exception, LateCall) as error:
            self.close()
            raise ToolServerError(
                f"the MCP server {' '.join((command, *arguments))} did not start: {error!r:.200}. "
                "Try the command in a terminal: it must wait there for messages, without an error"
            ) from error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, coroutine: Any) -> "Future[Any]":  # noqa: ANN401 - a coroutine of any result
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def listed(self) -> list[dict[str, Any]]:
        result = await self._client.list_tools()
        # By alias: the names of the protocol, which both major versions of the library have.
        return [tool.model_dump(by_alias=True, mode="json") for tool in result.tools]

    async def call(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        result = await self._client.call_tool(name, arguments)
        told = result.model_dump(by_alias=True, mode="json")
        texts = [part["text"] for part in told["content"] if part.get("type") == "text"]
        return bool(told.get("isError")), "\n".join(texts)

    def close(self) -> None:
        if self._thread.is_alive() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(END_SECONDS)
        atexit.unregister(self.close)

    def _serve(self, parameters: Any) -> None:  # noqa: ANN401 - of the library
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._session(parameters))
        except BaseException as error:  # noqa: BLE001 - whoever waits for the start raises it
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._loop.close()

    async def _session(self, parameters: Any) -> None:  # noqa: ANN401 - of the library
        from mcp.client.stdio import stdio_client  # pyright: ignore[reportMissingImports]

        async with (
            stdio_client(parameters) as (incoming, outgoing),
            self._mcp.ClientSession(incoming, outgoing) as client,
        ):
            await client.initialize()
            self._client = client
            self._ready.set_result(None)
            await self._end.wait()


@lru_cache(maxsize=64)
def connect(
    command: str, arguments: tuple[str, ...], env: tuple[tuple[str, str], ...]
) -> McpServer:
    """Return the server of a command: one for equal ones in a process."""
    return McpServer(command, arguments, env)
