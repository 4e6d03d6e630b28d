"""The near end of an environment's process: requests, answers, deadlines, output, and its end.

One request at a time is under way in each process; `running.py` waits for those of many.
"""

import logging
import os
import re
import signal
import socket
import sys
import sysconfig
import time
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, final

from llmgym.errors import EnvContractError, EnvProcessError
from llmgym.executors import Outcome
from llmgym.limits import CallLimit
from llmgym.messages import StopReason
from llmgym.processes.env_worker import Answer, Traits
from llmgym.processes.escaping import Lines
from llmgym.processes.plain import dumped, loaded
from llmgym.processes.recipe import Recipe
from llmgym.processes.spawner import Spawner, spawner

logger = logging.getLogger("llmgym.processes")

START_SECONDS = 60.0
"""What an environment may take to be built and imported, where its limit is shorter."""
PLACE_SECONDS = 0.3
"""How long a late process may take to tell the line that it is at."""
MAX_OUTPUT = 20_000
"""Characters of an episode's output that are logged."""
KEPT_LINES = 100
"""Lines of output that are kept to find the place of a crash in them."""
LAST_LINES = 3
"""Lines of output that the message about a process that has ended quotes."""
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>[0-9]+) in ')

Request = tuple[str, tuple[Any, ...]]


@dataclass(eq=False, slots=True)
class _Process:
    """A process that runs."""

    spawner: Spawner
    pid: int
    connection: Connection
    output: int
    is_printing: bool = True


@final
class EnvClient:
    """An environment's process, started with the first request, and anew after its end.

    Args:
        recipe: what it builds.
        memory_gb: of its data, in GiB; None for no limit.
        name: of the environment in messages and in the log.

    Attributes:
        traits: what the environment is; None until it has been built.
        rng: the state of its generator after the last answer; None where it has none.
    """

    def __init__(self, recipe: Recipe, memory_gb: float | None = None, name: str = "") -> None:
        if memory_gb is not None and not memory_gb > 0:
            raise EnvContractError(f"memory_gb must be above 0, or None; received {memory_gb}")
        self.recipe, self.memory_gb, self.name = recipe, memory_gb, name or recipe.target
        self.traits: Traits | None = None
        self.rng: Any = None
        self._process: _Process | None = None
        self._closer: weakref.finalize[..., Any] | None = None
        self._is_built = False
        self._pending: Request | None = None
        self._began = 0.0
        self._lines = Lines(MAX_OUTPUT, "the environment")
        self._recent: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Id of the process; None where there is none."""
        return None if self._process is None else self._process.pid

    def send(self, request: Request | None) -> None:
        """Begin a request; None builds the environment and asks nothing of it.

        Raises:
            EnvProcessError: no process can be started.
            EnvContractError: the arguments cannot be sent.
        """
        self._began, self._pending = time.monotonic(), request
        if self._process is None:
            self._start()
        elif request is not None:
            self._ask()

    def sources(self) -> list[Any]:
        """Return what to wait on: the connection and the output of the process."""
        assert self._process is not None
        if not self._process.is_printing:
            return [self._process.connection]
        return [self._process.connection, self._process.output]

    def deadline(self, limit: CallLimit) -> float:
        """Return when the request that is under way is late."""
        late_at = limit.deadline(self._began)
        if self._is_built or limit.seconds is None:
            return late_at
        return late_at + max(0.0, START_SECONDS - limit.seconds)

    def poll(self, limit: CallLimit) -> Outcome | None:
        """Return what became of the request; None while it is under way."""
        assert self._process is not None
        self._drain()
        try:
            while self._process.connection.poll():
                answer = self._read(self._process.connection.recv_bytes())
                if answer is not None:
                    return answer
        except (EOFError, OSError):
            return self._fallen()
        if time.monotonic() >= self.deadline(limit):
            return self._late(limit)
        return None

    def close(self) -> None:
        """End the process and all that it started; the next request starts another."""
        self._end()

    def _start(self) -> None:
        near, far = socket.socketpair()
        output, printed = os.pipe()
        os.set_blocking(output, False)
        helper = spawner()
        try:
            pid = helper.start(far.fileno(), printed)
        except EnvProcessError:
            near.close()
            os.close(output)
            raise
        finally:
            far.close()
            os.close(printed)
        self._process = _Process(helper, pid, Connection(near.detach()), output)
        self._closer = weakref.finalize(self, _end, self._process)
        self._is_built = False
        self._lines.refill()
        self._recent.clear()
        recipe = self.recipe
        arguments = dumped((dict(recipe.kwargs), recipe.args, recipe.spec))
        place = [path or os.getcwd() for path in sys.path], os.getcwd(), dict(os.environ)
        order = (place, recipe.target, arguments, self.memory_gb, self.rng)
        with suppress(OSError):  # one that has ended is found when its answer is awaited
            self._process.connection.send(order)

    def _ask(self) -> None:
        assert self._process is not None
        assert self._pending is not None
        request, self._pending = self._pending, None
        if request[0] in ("reset", "begin"):
            self._lines.refill()
        with suppress(BrokenPipeError, ConnectionResetError):  # found when its answer is awaited
            self._process.connection.send_bytes(dumped(request))

    def _read(self, data: bytes) -> Outcome | None:
        """Take an answer; None where it was that of the building, and a request follows."""
        seconds = time.monotonic() - self._began
        try:
            answer = loaded(data)
        except EnvContractError as error:
            return self._raised(Answer(raised="EnvContractError", line=f"{error}"), seconds)
        if answer.raised:
            return self._raised(answer, seconds)
        self.rng = answer.rng or self.rng
        if self._is_built:
            return Outcome(value=answer.value, seconds=seconds)
        self._is_built, self.traits = True, answer.value
        if self._pending is None:
            return Outcome(value=answer.value, seconds=seconds)
        self._began = time.monotonic()
        self._ask()
        return None

    def _raised(self, answer: Answer, seconds: float) -> Outcome:
        self._drain()
        if answer.trace:
            logger.debug("%s raised\n%s", self.name, answer.trace)
        if not self._is_built:
            self._end()
        return Outcome(
            failure=StopReason.ENV_ERROR, error=answer.line, seconds=seconds, raised=answer.raised
        )

    def _fallen(self) -> Outcome:
        """Return the outcome of a process that has ended by itself."""
        status = self._end()
        seconds = time.monotonic() - self._began
        when = "while it was built" if not self._is_built else "in the middle of a call"
        error = f"the environment's process ended {when}: {_cause(status)}{self._quoted()}"
        return Outcome(
            failure=StopReason.ENV_ERROR, error=error, seconds=seconds, raised="EnvProcessError"
        )

    def _late(self, limit: CallLimit) -> Outcome:
        where, seconds = self._place(), time.monotonic() - self._began
        self._end()
        return Outcome(
            failure=StopReason.TIMEOUT,
            error=f"{limit.message(self._began, where)}; its process was killed",
            seconds=seconds,
            raised="EnvTimeoutError",
        )

    def _place(self) -> str:
        """Return the line that a late process is at, which its interpreter prints on a signal."""
        assert self._process is not None
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self._process.pid, signal.SIGUSR1)
        until, text = time.monotonic() + PLACE_SECONDS, ""
        while (left := until - time.monotonic()) > 0 and wait([self._process.output], left):
            chunk = self._chunk()
            if not chunk:
                break
            text = (text + chunk)[-65536:]
        return _place_in(text.splitlines()) or "a call that does not return"

    def _chunk(self) -> str:
        assert self._process is not None
        try:
            chunk = os.read(self._process.output, 65536)
        except BlockingIOError:
            return ""
        self._process.is_printing = bool(chunk)  # else it has closed its output
        return chunk.decode("utf-8", "backslashreplace")

    def _drain(self, chunks: int = 64) -> None:
        """Log what was printed: a bounded part of it at once, so that none can keep this busy."""
        for _ in range(chunks):
            chunk = self._chunk()
            for line in self._lines.of(chunk):
                self._log(line)
            if not chunk:
                return

    def _log(self, line: str) -> None:
        self._recent.append(line)
        logger.info("%s: %s", self.name, line)

    def _quoted(self) -> str:
        lines = [line.strip() for line in self._recent if line.strip()]
        if place := _place_in(self._recent):
            return f" at {place}"
        return f"; it printed last: {' / '.join(lines[-LAST_LINES:])}" if lines else ""

    def _end(self) -> int:
        """End the process; return its status, 0 where there is none."""
        process, self._process = self._process, None
        if process is None or self._closer is None:
            return 0
        self._closer.detach()
        status = process.spawner.end(process.pid)
        self._process = process
        self._drain(chunks=4)
        for line in self._lines.rest():
            self._log(line)
        self._process = None
        _close(process)
        return status


def _place_in(lines: Iterable[str]) -> str:
    """Return FILE:LINE of the innermost frame in a traceback of faulthandler; empty: none."""
    frames = [frame for line in lines if (frame := _FRAME.match(line))]
    library = sysconfig.get_path("stdlib")
    own = [frame for frame in frames if not frame["file"].startswith((library, "<"))]
    frame = next(iter(own or frames), None)
    return "" if frame is None else f"{frame['file']}:{frame['line']}"


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = ", perhaps for lack of memory" if number == signal.SIGKILL else ""
        return f"killed by {signal.Signals(number).name}{hint}"
    return f"it exited with code {os.WEXITSTATUS(status)}"


def _end(process: _Process) -> None:
    process.spawner.end(process.pid)
    _close(process)


def _close(process: _Process) -> None:
    process.connection.close()
    os.close(process.output)
