"""Starts processes of environments: by one helper process for each process that asks.

The helper is started anew (never a fork of the trainer, which may hold a GPU and many threads) with
the package loaded, and forks a process for each environment, which shares the memory of what is
imported. It lives until this process ends.
"""

import atexit
import os
import socket
import subprocess
import sys
import threading
from functools import lru_cache
from typing import final

from llmgym.errors import EnvProcessError

COMMAND = "from llmgym.processes.spawner_main import main; main()"
FRAME, START, END = 9, b"s", b"e"
ANSWER_SECONDS = 60.0
"""A helper that answers later than this has ended, or cannot start."""


@final
class Spawner:
    """The helper process, and the socket to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # A hash seed of its own, fixed: several libraries draw tasks by walking over sets.
        environment = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, str(far.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(far.fileno(),),
            env=environment,
            start_new_session=True,
        )
        far.close()
        self._control.settimeout(ANSWER_SECONDS)

    @property
    def is_alive(self) -> bool:
        """Whether the helper still runs."""
        return self._process.poll() is None

    def start(self, connection: int, output: int) -> int:
        """Start a process and return its id.

        Args:
            connection: a descriptor, on which it takes requests and answers them.
            output: a descriptor, to which it prints.

        Raises:
            EnvProcessError: the helper has ended, or the system allows no more processes.
        """
        with self._lock:
            pid = self._ask(START, 0, [connection, output])
        if pid < 0:
            raise EnvProcessError(f"No process for an environment: {os.strerror(-pid)}")
        return pid

    def end(self, pid: int) -> int:
        """End a process and all that it started; return its status, as `os.waitpid` gives it."""
        with self._lock:
            try:
                return self._ask(END, pid, [])
            except EnvProcessError:  # every process below ends with the helper
                return 0

    def close(self) -> None:
        """End the helper and all processes that it started."""
        self._control.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, what: bytes, pid: int, descriptors: list[int]) -> int:
        request, answer = what + pid.to_bytes(8, "big", signed=True), b""
        try:
            socket.send_fds(self._control, [request], descriptors)
            while len(answer) < 8:
                part = self._control.recv(8 - len(answer))
                if not part:
                    raise ConnectionError("it has ended")
                answer += part
        except OSError as error:
            raise EnvProcessError(
                f"The process that starts environments does not answer ({error}); its traceback is "
                "above"
            ) from error
        return int.from_bytes(answer, "big", signed=True)


@lru_cache(maxsize=1)
def _spawner(process: int, generation: int) -> Spawner:
    """Return the helper of a process; a fork of it, or one after a helper's end, has another."""
    del process, generation
    spawner = Spawner()
    atexit.register(spawner.close)
    return spawner


_GENERATION = [0]


def spawner() -> Spawner:
    """Return this process's helper, started where there is none."""
    helper = _spawner(os.getpid(), _GENERATION[0])
    if not helper.is_alive:
        helper.close()
        _GENERATION[0] += 1
        helper = _spawner(os.getpid(), _GENERATION[0])
    return helper
