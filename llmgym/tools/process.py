"""A tool in a process of its own, which is killed with all that it started where a call is late.

The process starts at the first call, runs one call at a time on its main thread, and is replaced
after a kill. Arguments and results travel as JSON, the function once, pickled. This stops
accidents, not attackers.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, final

from llmgym.errors import EnvContractError, ToolError, ToolServerError
from llmgym.limits import LateCall
from llmgym.rewards.process import descendants, end_all

START_SECONDS = 60.0
POLL_SECONDS = 0.1
COMMAND = "from llmgym.tools.process import serve; serve()"


@final
class ToolProcess:
    """Runs a function in a killable process.

    Args:
        function: at the top of a module, so that it can be found there.

    Raises:
        EnvContractError: it cannot be.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        try:
            pickle.dumps(function)
        except Exception as error:
            raise EnvContractError(
                f"an isolated tool is found by its name in another process, and {function!r:.60} "
                f"is not: {error}. Define it at the top of a module"
            ) from error
        self.function = function
        self._process: _Process | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the process behind: a copy starts its own."""
        return {"function": self.function, "_process": None}

    def run(self, arguments: Mapping[str, Any], timeout: float | None) -> Any:  # noqa: ANN401
        """Call the function in the process.

        Raises:
            LateCall: there is no result in time; the process was killed.
            ToolError: the function raised, or ended its process; says what.
            ToolServerError: the process does not start.
        """
        if self._process is None:
            self._process = _Process(self.function)
        try:
            reply = self._process.call(arguments, timeout)
        except EOFError:
            self._kill()
            raise ToolError("the tool ended its process: an exit, a crash or a kill") from None
        except BaseException:  # late here, or in the call of the environment
            self._kill()
            raise
        if "error" in reply:
            raise ToolError(reply["error"])
        return reply["result"]

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()


class _Process:
    """A started process and the two pipes to it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        calls_out, calls_in = os.pipe()
        results_out, results_in = os.pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, str(calls_out), str(results_in)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a tool prints belongs beside the warnings
            pass_fds=(calls_out, results_in),
            env=environment,
            start_new_session=True,
        )
        os.close(calls_out)
        os.close(results_in)
        self._calls = Connection(calls_in, readable=False)
        self._results = Connection(results_out, writable=False)
        self._end = weakref.finalize(self, _end, self._process, self._calls, self._results)
        self._calls.send_bytes(pickle.dumps(function))
        try:
            loaded = self._read(START_SECONDS)
        except (EOFError, LateCall) as error:
            self.kill()
            raise ToolServerError(f"the process of a tool did not start: {error!r}") from error
        if "error" in loaded:
            self.kill()
            raise ToolServerError(f"the tool cannot be loaded in a process: {loaded['error']}")

    def call(self, arguments: Mapping[str, Any], timeout: float | None) -> dict[str, Any]:
        try:
            self._calls.send_bytes(json.dumps(dict(arguments)).encode())
        except BrokenPipeError:
            raise EOFError from None
        return self._read(timeout)

    def kill(self) -> None:
        self._end()

    def _read(self, timeout: float | None) -> dict[str, Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._results.poll(POLL_SECONDS):
            if deadline is not None and time.monotonic() >= deadline:
                raise LateCall(f"no result within {timeout} s")
        return json.loads(self._results.recv_bytes())


def _end(process: "subprocess.Popen[bytes]", *pipes: Connection) -> None:
    started = descendants(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    end_all(started)
    process.wait()
    for pipe in pipes:
        pipe.close()


def serve() -> None:
    """Run the calls of a `ToolProcess`: what its process does."""
    calls = Connection(int(sys.argv[1]), writable=False)
    results = Connection(int(sys.argv[2]), readable=False)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    try:
        function = pickle.loads(calls.recv_bytes())
        results.send_bytes(b"{}")
    except Exception as error:  # noqa: BLE001 - whatever its module raises
        results.send_bytes(json.dumps({"error": repr(error)}).encode())
        return
    while True:
        try:
            arguments = json.loads(calls.recv_bytes())
        except EOFError:  # the environment ended
            return
        results.send_bytes(json.dumps(_called(function, arguments), default=str).encode())


def _watch(parent: int) -> None:
    """End this process and what it started once the environment's process is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"result": function(**arguments)}
    except Exception as error:  # noqa: BLE001 - the policy is answered with it
        return {"error": f"{type(error).__name__}: {error}"}
