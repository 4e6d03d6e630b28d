"""How fast a machine is, by a probe of about a second, and what a pass takes there.

seconds = flops / rate of matrix products + bytes written / rate of writing + calls * overhead
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainers.plan.rehearsal import Usage

LOW, HIGH = 0.6, 2.0
"""What a forecast may be off by. Text is shorter than its limits; clocks differ."""

CALLS_OF_PYTHON = 6
"""How much longer an operation of a model takes than the operation alone, by the Python around."""

ROWS, MOST = 1024, 4096
_PROBE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The rates of one process.

    Attributes:
        flops: operations in matrix products a second.
        written: bytes of results a second.
        call: seconds of an operation, whatever its size.
        source: where the figures come from, in words.
    """

    flops: float
    written: float
    call: float
    source: str

    def seconds(self, usage: Usage) -> float:
        """Return what some work takes."""
        return usage.flops / self.flops + usage.written / self.written + usage.calls * self.call


ASSUMED = Pace(
    flops=2.5e14, written=1.0e12, call=1.5e-5, source="assumed: 250 TFLOP/s and 1 TB/s a GPU"
)
"""A data-centre GPU of 2022 in bfloat16, where none is there to be asked."""


def probed(width: int, inner: int, *, dtype: torch.dtype, device: torch.device) -> Pace:
    """Measure this machine at matrix products of a model's own sizes.

    Args:
        width: of the residual stream.
        inner: inside a feed-forward block.
        dtype: of the matrix products.
        device: where to measure.
    """
    width, inner = min(width, MOST), min(inner, MOST)
    left = torch.ones(ROWS, width, dtype=dtype, device=device)
    right = torch.ones(width, inner, dtype=dtype, device=device)
    large = torch.ones(ROWS, 4 * MOST, device=device)
    small = torch.ones(1, device=device)
    call = _seconds(lambda: small + 1, device)
    product = max(_seconds(lambda: left @ right, device) - call, 1e-9)
    return Pace(
        flops=2 * ROWS * width * inner / product,
        written=large.nbytes / _seconds(lambda: large + large, device),
        call=CALLS_OF_PYTHON * call,
        source=f"measured now, {torch.get_num_threads()} CPU threads that nothing else uses"
        if device.type == "cpu"
        else f"measured now on {torch.cuda.get_device_name(device)}",
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of some work, the best of as many times as fit the probe."""
    # On a CPU this thread's own seconds: what other programs take meanwhile does not count.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    best, until = float("inf"), clock() + _PROBE_SECONDS
    while clock() < until or best == float("inf"):
        begin = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - begin)
    return best
