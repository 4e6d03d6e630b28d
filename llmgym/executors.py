"""Running one function over many slots: in turn, or in threads with a time limit for each slot.

Results are by slot, so the outcome does not depend on the executor.
"""

import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium

from llmgym.errors import EnvContractError, EnvTimeoutError
from llmgym.limits import CallLimit, LateCall, place, within
from llmgym.messages import StopReason

MAX_LATE = 2
"""Slots of one call that may be late in turn; those after them are not called any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one slot.

    Attributes:
        value: what the function returned; None where it failed.
        failure: `ENV_ERROR` (it raised), `TIMEOUT` (it was late) or None.
        error: the failure in one line, or None.
        seconds: wall time the slot took.
        raised: name of the exception's class, where it failed in a process of its own.
    """

    value: Any = None
    failure: StopReason | None = None
    error: str | None = None
    seconds: float = 0.0
    raised: str = ""


def run_inline(
    function: Callable[[int], Any], slots: Iterable[int], *, limit: CallLimit | None = None
) -> dict[int, Outcome]:
    """Run `function(slot)` for one slot after the other.

    In the main thread a late slot is interrupted. After two late ones the rest are not called:
    what hangs twice may hang for all of them.

    Args:
        function: called with a slot's number.
        slots: the numbers.
        limit: of a slot's time; None for none.
    """
    outcomes: dict[int, Outcome] = {}
    num_late = 0
    for slot in slots:
        if num_late == MAX_LATE:
            error = f"not called: {num_late} slots before it gave no reply in time"
            outcomes[slot] = Outcome(failure=StopReason.TIMEOUT, error=error)
            continue
        outcomes[slot] = _outcome(function, slot, limit or CallLimit(None))
        num_late += outcomes[slot].failure is StopReason.TIMEOUT
    return outcomes


def run_threads(
    function: Callable[[int], Any],
    slots: Iterable[int],
    *,
    workers: int,
    limit: CallLimit | None = None,
) -> dict[int, Outcome]:
    """Run `function(slot)` in threads.

    A thread cannot be killed: a late slot is given up, its thread is left behind and a new one
    takes its place. The threads are daemons, so a stuck one does not keep the process alive.

    Args:
        function: called with a slot's number.
        slots: the numbers.
        workers: threads at a time.
        limit: of a slot's time, counted from its own start; None for none.
    """
    return _Crew(function, list(slots), limit or CallLimit(None)).run(workers)


def begin_inline(
    env: gymnasium.Env, slot: int, seed: int | None, options: dict[str, Any], limit: CallLimit
) -> Any:  # noqa: ANN401 - any space's element
    """Reset the environment of a slot in this thread; return its observation.

    Raises:
        EnvTimeoutError: it takes longer than the limit.
        EnvContractError: it calls `sys.exit`.
    """
    try:
        return within(limit, lambda: env.reset(seed=seed, options=options))[0]
    except LateCall as late:
        raise EnvTimeoutError(f"reset of slot {slot}: {late}") from None
    except SystemExit as error:
        name = type(env.unwrapped).__name__
        raise EnvContractError(
            f"reset of {name} called sys.exit({error.code!r}). Raise an exception instead"
        ) from error


class _Crew:
    """The threads of one call, and the queues they share; thrown away after it."""

    def __init__(self, function: Callable[[int], Any], slots: list[int], limit: CallLimit) -> None:
        self._function = function
        self._limit = limit
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        self._started: dict[int, tuple[float, int]] = {}
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
            self._started[slot] = time.monotonic(), threading.get_ident()
            self._done.put((slot, _outcome(self._function, slot, CallLimit(None))))

    def _running(self) -> dict[int, float]:
        started = self._started.copy()
        return {slot: began for slot, (began, _) in started.items() if slot in self._open}

    def _patience(self) -> float:
        """Return how long to wait for the next result: a limit may become shorter meanwhile."""
        ends = (self._limit.deadline(began) for began in self._running().values())
        return min(1.0, max(0.0, min(ends, default=math.inf) - time.monotonic()))

    def _late(self) -> list[int]:
        now = time.monotonic()
        running = self._running().items()
        return [slot for slot, began in running if self._limit.deadline(began) <= now]

    def _give_up(self, slot: int) -> Outcome:
        self._open.remove(slot)
        self._hire()
        began, thread = self._started[slot]
        error = self._limit.message(began, place(sys._current_frames().get(thread)))
        seconds = time.monotonic() - began
        return Outcome(failure=StopReason.TIMEOUT, error=error, seconds=seconds)


def _outcome(function: Callable[[int], Any], slot: int, limit: CallLimit) -> Outcome:
    began = time.monotonic()
    try:
        value = within(limit, lambda: function(slot))
    except LateCall as late:
        failure, error = StopReason.TIMEOUT, str(late)
    except EnvTimeoutError as late:  # of a process that the environment waits for
        failure, error = StopReason.TIMEOUT, str(late)
    # A failed episode is data; its siblings go on. An exit would end one thread in silence.
    except (Exception, SystemExit) as raised:  # noqa: BLE001
        first = next(iter(str(raised).splitlines()), "")
        failure, error = StopReason.ENV_ERROR, f"{type(raised).__name__}: {first}"
    else:
        return Outcome(value=value, seconds=time.monotonic() - began)
    return Outcome(failure=failure, error=error, seconds=time.monotonic() - began)
