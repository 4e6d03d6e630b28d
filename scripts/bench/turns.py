"""The worker's half of the protocol: one iteration per line read, one JSON record per line written.

    runner                          worker
                                    builds its parts, begin(), runs one iteration to warm up
      <- {"ready": ...}             end(...)
    "turn" ->                       runs one iteration
      <- {"cpu": ..., "wall": ...}  end(...)
    closes the pipe ->              leaves

A worker waits inside `end`: between turns it uses no processor, and freed memory is given back.
What the libraries print goes to stderr. Only the standard library is imported here: every
environment of `scripts/bench/requirements` reads this file.
"""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def memory(field: str) -> int:
    """Return a line of /proc/self/status, such as VmRSS or VmHWM (its maximum), in bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        name, _, text = line.partition(":")
        if name == field:
            return int(text.split()[0]) * 1024
    raise LookupError(f"{STATUS} has no line {field}")


def _descendants(process: int) -> list[int]:
    """Return the numbers of the processes below one."""
    below: list[int] = []
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, listed.read_text(encoding="ascii").split()):
            below += [child, *_descendants(child)]
    return below


def cpu_seconds() -> float:
    """Return user and system time of this process and of those below it that still run."""
    ticks = 0
    for process in _descendants(os.getpid()):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2]
        ticks += sum(map(int, fields.split()[11:13]))  # utime and stime, 14th and 15th of the line
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def give_back() -> None:
    """Return freed memory to the system, so that what follows counts what it takes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class Turns:
    """Stamps the iterations of a worker.

    Attributes:
        shape: the JSON of the first argument, what the worker is to run.
        phases: CPU seconds of named parts of this iteration.
    """

    def __init__(self) -> None:
        """Keep stdout for records, and send what is printed to stderr."""
        self.shape: dict[str, Any] = json.loads(sys.argv[1])
        self.phases: dict[str, float] = {}
        self._records = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._has_warmed_up = False
        self._at_start = 0
        self._stamps = (0.0, 0.0)

    def begin(self) -> None:
        """Note the memory at the start of training, and begin the first iteration."""
        give_back()
        self._at_start = memory("VmRSS")
        CLEAR.write_text("5", encoding="ascii")  # the maximum so far becomes what is held now
        self._stamp()

    def end(self, **figures: Any) -> None:
        """End an iteration: write its record, wait for the next turn, and begin that.

        Args:
            **figures: what else the record holds.
        """
        cpu, wall = cpu_seconds(), time.perf_counter()
        record = {
            "cpu": cpu - self._stamps[0],
            "wall": wall - self._stamps[1],
            "growth": memory("VmHWM") - self._at_start,
            "phases": dict(self.phases),
            **figures,
        }
        print(json.dumps(record if self._has_warmed_up else {"ready": record}), file=self._records)
        self._records.flush()
        self._has_warmed_up = True
        give_back()  # who waits holds weights and moments, not what an iteration took and freed
        if not sys.stdin.readline():
            os._exit(0)  # past what a library does at the end of training, which nobody measures
        self._stamp()

    def _stamp(self) -> None:
        self.phases.clear()
        self._stamps = (cpu_seconds(), time.perf_counter())

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, its CPU seconds added to those of `phase`."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - those of the function
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - began
                self.phases[phase] = self.phases.get(phase, 0.0) + spent

        return run
