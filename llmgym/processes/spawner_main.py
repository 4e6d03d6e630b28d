"""The far end of `Spawner`: one clean process that forks a process for each environment.

Run by `spawner.py` in a session of its own; not a command for people. It has imported this package
and nothing else, holds no GPU and one thread, so that forking it is cheap and safe. It ends every
process below it when its parent goes away, and whatever an environment that has ended left behind.
"""

import ctypes
import gc
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import NoReturn, final

from llmgym.processes.env_worker import work
from llmgym.processes.tree import children_by_parent, descendants, end_all

FRAME = 9
"""Bytes of a request: one that says what, and eight with the number of a process."""
START, END = b"s", b"e"
POLL_MS = 1_000
"""How often it looks whether its parent is still there."""
PDEATHSIG, SUBREAPER = 1, 36
"""Numbers of prctl: a signal at the parent's end; adopt the orphans of all that is below."""


def main() -> None:
    """Serve the requests that arrive on the socket argv[1]."""
    Far(socket.socket(fileno=int(sys.argv[1]))).serve()


@final
class Far:
    """Forks processes of environments and ends them."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._parent = os.getppid()
        self._live: set[int] = set()
        self._ended: dict[int, int] = {}
        self._woken, wakes = os.pipe()
        for descriptor in (self._woken, wakes):
            os.set_blocking(descriptor, False)
        _prctl(SUBREAPER, 1)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the pipe is written to
        signal.set_wakeup_fd(wakes)
        gc.collect()
        gc.freeze()  # so that collecting in a child copies no page of what all share

    def serve(self) -> NoReturn:
        """Answer requests until the parent goes away; then end everything."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while os.getppid() == self._parent:
            ready = {descriptor for descriptor, _ in poll.poll(POLL_MS)}
            if self._woken in ready:
                os.read(self._woken, 65536)
            self._reap()
            if self._control.fileno() in ready and not self._answer():
                break
        end_all(descendants(os.getpid()))
        os._exit(0)

    def _answer(self) -> bool:
        """Answer one request; False where the parent is gone."""
        try:
            request, descriptors, *_ = socket.recv_fds(self._control, FRAME, 2)
        except ConnectionError:
            return False
        if len(request) < FRAME:
            return False
        pid = int.from_bytes(request[1:], "big", signed=True)
        value = self._start(*descriptors) if request[:1] == START else self._end(pid)
        with suppress(ConnectionError):
            self._control.sendall(value.to_bytes(8, "big", signed=True))
        return True

    def _start(self, connection: int, output: int) -> int:
        """Fork the process of an environment and return its id; minus the error's number."""
        try:
            pid = os.fork()
        except OSError as error:
            os.close(connection)
            os.close(output)
            return -(error.errno or 1)
        if pid == 0:
            self._become_worker(connection, output)
        os.close(connection)
        os.close(output)
        self._live.add(pid)
        return pid

    def _become_worker(self, connection: int, output: int) -> NoReturn:
        """Leave everything of this process behind, and work; never returns."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.setsid()
            _prctl(PDEATHSIG, signal.SIGKILL)
            _prctl(SUBREAPER, 1)  # its orphans stay below it, so they are known to be its own
            work(connection, output)
        except BaseException:  # noqa: BLE001 - this process ends here, whatever it was
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)

    def _end(self, pid: int) -> int:
        """End a process and all that it started; return its status, as `os.waitpid` gives it."""
        if pid in self._live:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._buried(*os.waitpid(pid, 0))
        return self._ended.pop(pid, 0)

    def _reap(self) -> None:
        """Take note of processes that have ended by themselves."""
        while self._live:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._live:
                self._buried(pid, status)

    def _buried(self, pid: int, status: int) -> None:
        self._live.discard(pid)
        self._ended[pid] = status
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        while orphans := [
            child for child in children_by_parent()[os.getpid()] if child not in self._live
        ]:
            end_all([*orphans, *descendants(os.getpid(), self._live)])
            for orphan in orphans:
                with suppress(ChildProcessError):
                    os.waitpid(orphan, 0)


def _prctl(number: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(number, int(value), 0, 0, 0)
