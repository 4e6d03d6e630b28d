"""Running one function over many slots: in turn, or in threads with a time limit for each slot.

Results are by slot, so the outcome does not depend on the executor.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from llmgym.messages import StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one slot.

    Attributes:
        value: what the function returned; None where it failed.
        failure: `ENV_ERROR` (it raised), `TIMEOUT` (it was late) or None.
        error: the failure in one line, or None.
        seconds: wall time the slot took.
    """

    value: Any = None
    failure: StopReason | None = None
    error: str | None = None
    seconds: float = 0.0


def run_inline(function: Callable[[int], Any], slots: Iterable[int]) -> dict[int, Outcome]:
    """Run `function(slot)` for one slot after the other."""
    return {slot: _outcome(function, slot) for slot in slots}


def run_threads(
    function: Callable[[int], Any],
    slots: Iterable[int],
    *,
    workers: int,
    timeout: float | None = None,
) -> dict[int, Outcome]:
    """Run `function(slot)` in threads.

    A thread cannot be killed: a late slot is given up, its thread is left behind and a new one
    takes its place. The threads are daemons, so a stuck one does not keep the process alive.

    Args:
        function: called with a slot's number.
        slots: the numbers.
        workers: threads at a time.
        timeout: seconds a slot may run, counted from its own start; None for no limit.
    """
    return _Crew(function, list(slots), timeout).run(workers)


class _Crew:
    """The threads of one call, and the queues they share; thrown away after it."""

    def __init__(
        self, function: Callable[[int], Any], slots: list[int], timeout: float | None
    ) -> None:
        self._function = function
        self._timeout = timeout
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        self._started: dict[int, float] = {}
        self._open = set(slots)
        for slot in slots:
            self._todo.put(slot)

    def run(self, workers: int) -> dict[int, Outcome]:
        outcomes: dict[int, Outcome] = {}
        for _ in range(min(workers, len(self._open))):
            self._hire()
        while self._open:
            try:
                slot, outcome = self._done.get(timeout=self._patience())
            except queue.Empty:
                for slot in self._late():
                    outcomes[slot] = self._give_up(slot)
                continue
            if slot in self._open:  # else its thread came back after it was given up
                self._open.remove(slot)
                outcomes[slot] = outcome
        return outcomes

    def _hire(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                slot = self._todo.get_nowait()
            except queue.Empty:
                return
            self._started[slot] = time.monotonic()
            self._done.put((slot, _outcome(self._function, slot)))

    def _running(self) -> dict[int, float]:
        started = self._started.copy()
        return {slot: began for slot, began in started.items() if slot in self._open}

    def _patience(self) -> float | None:
        if self._timeout is None:
            return None
        oldest = min(self._running().values(), default=time.monotonic())
        return max(0.0, oldest + self._timeout - time.monotonic())

    def _late(self) -> list[int]:
        assert self._timeout is not None
        limit = time.monotonic() - self._timeout
        return [slot for slot, began in self._running().items() if began <= limit]

    def _give_up(self, slot: int) -> Outcome:
        self._open.remove(slot)
        self._hire()
        seconds = time.monotonic() - self._started[slot]
        error = f"no reply within env_timeout={self._timeout} seconds"
        return Outcome(failure=StopReason.TIMEOUT, error=error, seconds=seconds)


def _outcome(function: Callable[[int], Any], slot: int) -> Outcome:
    began = time.monotonic()
    try:
        value = function(slot)
    # A failed episode is data; its siblings go on. An exit would end one thread in silence.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        first = next(iter(str(error).splitlines()), "")
        return Outcome(
            failure=StopReason.ENV_ERROR,
            error=f"{type(error).__name__}: {first}",
            seconds=time.monotonic() - began,
        )
    return Outcome(value=value, seconds=time.monotonic() - began)
