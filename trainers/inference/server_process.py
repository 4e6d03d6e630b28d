"""A server of another project as a child process: started, waited for, ended. No torch."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType
from typing import final

from trainers.errors import ConfigError, LostServerError
from trainers.inference.endpoint_files import log_tail
from trainers.inference.servers import ServerCommand

HEALTH_SECONDS = 2.0
"""That one look at a server's health may take."""
POLL_SECONDS = 0.25
END_WAIT = 20.0
"""Seconds that a server has to end after it was asked to."""
PR_SET_PDEATHSIG = 1


def check_port(host: str, port: int) -> None:
    """Refuse a port that another program listens at.

    Raises:
        ConfigError: it is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{host}:{port} cannot be listened at: {reason}. Name another port: --port "
                f"{port + 1 if port < 65535 else 8000}"
            ) from error


def is_healthy(host: str, port: int) -> bool:
    """Tell whether a server answers GET /health with 200."""
    connection = HTTPConnection(host, port, timeout=HEALTH_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent is killed; in the child, before exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@final
class ServerProcess:
    """A server that runs.

    Args:
        command: that starts it.
        log: file of what it prints, for its user alone.

    Attributes:
        pid: of the process.
    """

    def __init__(self, command: ServerCommand, log: Path) -> None:
        self._log, self._stopped = log, False
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            self._process = subprocess.Popen(
                command.words,
                env=command.variables,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C asks this process, which asks the server
                preexec_fn=_end_with_parent,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(command.given_text.encode())
        self._process.stdin.close()
        self.pid = self._process.pid

    def wait_until_healthy(self, host: str, port: int, seconds: float) -> bool:
        """Wait until the server answers; False where it was stopped before.

        Raises:
            LostServerError: it ended, or did not answer in time; with the end of what it printed.
        """
        deadline = time.monotonic() + seconds
        while not is_healthy(host, port):
            if self._process.poll() is not None:
                if self._stopped:
                    return False
                raise LostServerError(self.ended_message())
            if time.monotonic() > deadline:
                self.stop()
                raise LostServerError(
                    f"the server did not answer at http://{host}:{port}/health within "
                    f"{seconds:g} s (--wait-seconds).\n{log_tail(str(self._log))}"
                )
            time.sleep(POLL_SECONDS)
        return True

    def wait(self) -> int:
        """Wait until the server ends; return its exit code, 128 + n for the signal n."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    @property
    def was_stopped(self) -> bool:
        """Whether the server was asked to end."""
        return self._stopped

    @property
    def exit_code(self) -> int | None:
        """Of a server that ended, as `wait` gives it."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def ended_message(self) -> str:
        """Return how it ended, and its last lines."""
        return f"the server ended with exit code {self.exit_code}.\n{log_tail(str(self._log))}"

    def stop(self) -> None:
        """Ask the server to end, and end it if it does not."""
        self._stopped = self._stopped or self._process.poll() is None
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            _signal_group(self.pid, number)
            try:
                self._process.wait(END_WAIT)
            except subprocess.TimeoutExpired:
                continue

    def stop_at_signals(self) -> Callable[[], None]:
        """Let SIGTERM and SIGINT stop the server; return what restores what they did before."""

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._stopped = True
            _signal_group(self.pid, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, END_WAIT)

        def kill(number: int, frame: FrameType | None) -> None:
            del number, frame
            _signal_group(self.pid, signal.SIGKILL)

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGALRM: kill}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

        def restore() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore


def _signal_group(pid: int, number: int) -> None:
    """Send a signal to the processes of a server."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
