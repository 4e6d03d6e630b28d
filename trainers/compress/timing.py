"""Times pieces of work against one another on a machine that does other things too.

Pieces are run in turn, in random order, so that a slow minute hits all of them; ratios are taken
within a round, where both had the same minute. On one thread the clock is the CPU time of this
thread, which leaves out the time that others had the processor; else it is the wall clock.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import transformers

from trainers.errors import MeasurementError

DRAWS = 2000
"""Resamples of a bootstrap."""


@final
@dataclass(frozen=True, slots=True)
class TimedWork:
    """A piece of work that is timed.

    Attributes:
        run: what is timed.
        reset: what puts things back after it, untimed.
    """

    run: Callable[[], object]
    reset: Callable[[], object] = lambda: None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatio:
    """The time of one piece of work over that of another, within rounds.

    Attributes:
        median: of the ratios.
        low: 95 % interval of the median, by bootstrap.
        high: its upper end.
        rounds: how often both ran.
    """

    median: float
    low: float
    high: float
    rounds: int


def clock() -> Callable[[], float]:
    """Return the clock: CPU time of this thread where torch computes on it alone."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def check_idle(limit: float) -> None:
    """Refuse to measure on a busy machine.

    Args:
        limit: running processes per core, over the last minute, above which it is busy.

    Raises:
        MeasurementError: it is busy.
    """
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] / cores
    if load > limit:
        raise MeasurementError(
            f"{load:.2f} processes per core ran in the last minute, and times are trusted up to "
            f"{limit:.2f}. Wait until the machine is idle, then measure again."
        )


def interleaved(
    works: Sequence[TimedWork], *, rounds: int, warmups: int = 3, seed: int = 0
) -> np.ndarray:
    """Return the seconds [rounds, works] of every piece of work, in random order in each round.

    Args:
        works: what is timed.
        rounds: how often each runs.
        warmups: rounds before, which do not count.
        seed: of the order.
    """
    now, rng = clock(), np.random.default_rng(seed)
    seconds = np.empty((rounds, len(works)))
    for number in range(-warmups, rounds):
        for at in rng.permutation(len(works)):
            work = works[at]
            began = now()
            work.run()
            passed = now() - began
            work.reset()
            if number >= 0:
                seconds[number, at] = passed
    return seconds


def paired_ratio(
    ours: TimedWork, theirs: TimedWork, *, rounds: int = 20, seed: int = 0
) -> PairedRatio:
    """Return the time of `ours` over the time of `theirs`, from rounds of both.

    Raises:
        MeasurementError: there are fewer than 10 rounds.
    """
    if rounds < 10:
        raise MeasurementError(f"{rounds} rounds say too little of a ratio: give 10 or more")
    seconds = interleaved([ours, theirs], rounds=rounds, seed=seed)
    return ratio_of_rounds(seconds[:, 0], seconds[:, 1], seed=seed)


def ratio_of_rounds(ours: np.ndarray, theirs: np.ndarray, *, seed: int = 0) -> PairedRatio:
    """Return the ratio of seconds [rounds] to seconds [rounds] of the same rounds.

    Raises:
        MeasurementError: there are fewer than 10 rounds.
    """
    rounds = len(ours)
    if rounds < 10:
        raise MeasurementError(f"{rounds} rounds say too little of a ratio: give 10 or more")
    ratios = ours / theirs
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(ratios, (DRAWS, rounds)), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return PairedRatio(
        median=float(np.median(ratios)), low=float(low), high=float(high), rounds=rounds
    )


def processor() -> str:
    """Return the name of the CPU; "" where the system does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine_record() -> dict[str, Any]:
    """Return what a time depends on: processor, cores, threads and versions."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "thread" if torch.get_num_threads() == 1 else "wall",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
