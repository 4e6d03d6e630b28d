"""A time limit for calls into an environment.

A thread cannot be killed, but Python's main thread can be interrupted: a second thread sends it a
signal (SIGVTALRM) once a call is late, and the handler raises there. That ends what sleeps, waits
for a lock or a socket, or loops in Python. A call that stays inside of a C library is reported to
`CallLimit.on_stuck`. On Windows no call is interrupted. In another thread a call with a limit is
made in one more, which is left behind where it is late.
"""

import math
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import FrameType
from typing import Any, final

ENV_TIMEOUT = 600.0
"""Seconds that an environment may take for one call, unless told otherwise."""
STUCK_SECONDS = 20.0
"""After the first interruption, until a call counts as one that cannot be interrupted."""
POLL_SECONDS = 0.1
IDLE_SECONDS = 5.0
"""After the last call, until the watching thread ends; the next call starts one."""


class LateCall(BaseException):
    """Raised in a call that is late, or by who waits for it; no `except Exception` catches it."""


@final
class CallLimit:
    """How long a call into an environment may take; the slots of a vector share one.

    Args:
        seconds: of one call; None for no limit.

    Attributes:
        on_stuck: called from another thread with a message, if a late call in the main thread
            cannot be interrupted.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.on_stuck: Callable[[str], None] | None = None
        self._ends_at = math.inf

    def hurry(self, seconds: float) -> None:
        """Let calls end within `seconds` from now: the process was asked to stop."""
        self._ends_at = min(self._ends_at, time.monotonic() + seconds)

    def deadline(self, began: float) -> float:
        """Return when a call that began at `began` is late; one that has just begun gets 1 s."""
        limit = math.inf if self.seconds is None else began + self.seconds
        return min(limit, max(self._ends_at, began + 1.0))

    def message(self, began: float, where: str) -> str:
        """Return what is wrong with a late call, and the line that it was at."""
        took = time.monotonic() - began
        is_asked = self.seconds is None or took < self.seconds
        span = "the time after a request to stop" if is_asked else f"env_timeout={self.seconds:g} s"
        return f"no reply within {span}: it was at {where} after {took:.1f} s"


@dataclass(eq=False, slots=True)
class _Call:
    limit: CallLimit
    began: float
    late_at: float = math.inf
    where: str = ""


@final
class _MainThread:
    """The call that runs in the main thread, and the thread that watches it."""

    def __init__(self) -> None:
        self._call: _Call | None = None
        self._used_at = 0.0
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._is_ready = False
        self._pause = threading.Event()

    def run(self, limit: CallLimit, function: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Call a function.

        Raises:
            LateCall: it took too long; says where it was.
        """
        call, outer = _Call(limit, time.monotonic()), self._call
        self._start_watching(call.began)
        try:
            self._call = call
            return function()
        finally:
            self._call = outer

    def _start_watching(self, now: float) -> None:
        if not self._is_ready:
            signal.signal(signal.SIGVTALRM, self._interrupt)
            self._is_ready = True
        with self._lock:
            self._used_at = now
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True, name="env-limit")
                self._watcher.start()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        call, is_inside = self._call, frame is None or frame.f_code is not _MainThread.run.__code__
        if call is not None and call.late_at < math.inf and is_inside:
            raise LateCall(call.limit.message(call.began, call.where))

    def _watch(self) -> None:
        while True:
            self._pause.wait(POLL_SECONDS)  # time.sleep may be replaced, in tests of environments
            call, now = self._call, time.monotonic()
            if call is not None and now >= call.limit.deadline(call.began):
                self._stop(call, now)
            with self._lock:
                self._used_at = now if call is not None else self._used_at
                if now - self._used_at > IDLE_SECONDS:
                    self._watcher = None
                    return

    def _stop(self, call: _Call, now: float) -> None:
        """Interrupt a late call, again and again; report one that continues regardless."""
        main = threading.main_thread().ident or 0
        if call.late_at == math.inf:
            call.where = place(sys._current_frames().get(main))
            call.late_at = now
        if now - call.late_at > STUCK_SECONDS and call.limit.on_stuck is not None:
            call.limit.on_stuck(call.limit.message(call.began, call.where))
        signal.pthread_kill(main, signal.SIGVTALRM)


_MAIN = _MainThread()


def _left_behind(limit: CallLimit, function: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Call a function in a thread of its own.

    Raises:
        LateCall: it took too long; the thread continues, and nobody reads what it returns.
    """
    result: Future[Any] = Future()

    def call() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            result.set_exception(error)

    began = time.monotonic()
    thread = threading.Thread(target=call, daemon=True, name="env-call")
    thread.start()
    while not wait([result], POLL_SECONDS).done:
        if time.monotonic() >= limit.deadline(began):
            frame = sys._current_frames().get(thread.ident or 0)
            raise LateCall(limit.message(began, place(frame)))
    return result.result()


def within(limit: CallLimit, function: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Call a function, for as long as the limit allows: in this thread, if it is the main one.

    Raises:
        LateCall: it took too long.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main and limit.seconds is not None:
        return _left_behind(limit, function)
    if sys.platform == "win32" or not is_main:
        return function()
    return _MAIN.run(limit, function)


def place(frame: FrameType | None) -> str:
    """Return file and line that a thread is at, outside of Python's own library."""
    library, inner = sysconfig.get_path("stdlib"), frame
    while inner is not None:
        file = inner.f_code.co_filename
        if "site-packages" in file or not file.startswith(library):
            break
        inner = inner.f_back
    at = inner or frame
    return "its end" if at is None else f"{at.f_code.co_filename}:{at.f_lineno}"
