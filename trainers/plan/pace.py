"""How fast a machine is, by a probe of about a second, and what a pass takes there.

seconds = flops / rate of matrix products + bytes written / rate of writing + calls * overhead
        + bytes received / rate of links

A forward and backward pass of one real layer then says how far that sum is off here: what an
operation writes takes a fifth of the time where the heap has a block for it, and casts have paces
of their own.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.plan.counting import Usage, counted

LOW, HIGH = 0.75, 1.6
"""What a forecast may be off by beside the lengths of responses: clocks, and who else computes."""

CALLS_OF_PYTHON = 6
"""How much longer an operation of a model takes than the operation alone, by the Python around."""

GAIN = 0.75
"""Threads to this power are as fast as one is: two took 0.58 of the seconds of one."""

BETWEEN, WITHIN = 5.0e10, 3.0e11
"""Bytes a second that a rank receives from others, assumed: from other machines, where each GPU has
a card of 400 Gb/s, and within one, where NVLink joins them."""

TIMED_ROWS, MAX_TIMED_WIDTH, TIMED_HEAD_SIZE, TIMED_VOCABULARY = 1024, 4096, 32, 512
_PROBE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The rates of one process.

    Attributes:
        flops: operations in matrix products a second.
        written: bytes of results a second.
        call: seconds of an operation, whatever its size.
        source: where these figures come from, in words.
        link: bytes that a rank receives from others a second.
    """

    flops: float
    written: float
    call: float
    source: str
    link: float = BETWEEN

    def seconds(self, usage: Usage) -> float:
        """Return what some work takes."""
        computed = usage.flops / self.flops + usage.written / self.written
        return computed + usage.calls * self.call + usage.received / self.link


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
    width, inner = min(width, MAX_TIMED_WIDTH), min(inner, MAX_TIMED_WIDTH)
    left = torch.ones(TIMED_ROWS, width, dtype=dtype, device=device)
    right = torch.ones(width, inner, dtype=dtype, device=device)
    large = torch.ones(
        2 * TIMED_ROWS if device.type == "cpu" else 16 * TIMED_ROWS, TIMED_ROWS, device=device
    )
    small = torch.ones(1, device=device)
    call = _seconds(lambda: small + 1, device)
    product = max(_seconds(lambda: left @ right, device) - call, 1e-9)
    return Pace(
        flops=2 * TIMED_ROWS * width * inner / product,
        written=large.nbytes / _seconds(lambda: torch.nn.functional.silu(large), device),
        call=CALLS_OF_PYTHON * call,
        source="measured now on one CPU thread"
        if device.type == "cpu"
        else f"measured now on {torch.cuda.get_device_name(device)}",
    )


@contextmanager
def one_thread() -> Iterator[int]:
    """Compute on one thread, whose seconds can be measured alone; yield how many run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def on_threads(pace: Pace, threads: int) -> Pace:
    """Return the pace of several threads that nothing else uses, from that of one."""
    if threads == 1:
        return pace
    gain = threads**GAIN
    return Pace(
        flops=pace.flops * gain,
        written=pace.written * gain,
        call=pace.call / gain,
        source=f"{pace.source}, and {threads} that nothing else uses taken for {gain:.2g} times it",
    )


def tried(
    pace: Pace, width: int, inner: int, *, tokens: tuple[int, int], dtype: torch.dtype,
    device: torch.device,
) -> Pace:  # fmt: skip
    """Return the pace at which a Llama's layer of these sizes really learns.

    Args:
        pace: to be corrected; as it is where the layer is larger than what a plan may try.
        width: of the residual stream.
        inner: inside a feed-forward block.
        tokens: rows of a micro-batch, and the tokens of each.
        dtype: of the matrix products.
        device: where to try it.
    """
    heads = max(1, width // TIMED_HEAD_SIZE)
    if max(width, inner) > MAX_TIMED_WIDTH or width % heads or (width // heads) % 2:
        return pace
    with torch.random.fork_rng(devices=[]), torch.device(device):
        layer = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=width, intermediate_size=inner, num_hidden_layers=1,
                num_attention_heads=heads, num_key_value_heads=heads, vocab_size=TIMED_VOCABULARY,
            )
        )  # fmt: skip
        ids = torch.zeros(tokens, dtype=torch.long)

    def learn() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = layer(input_ids=ids, use_cache=False).logits
        logits.float().log_softmax(-1).mean().backward()

    learn()
    usage = counted(learn, [layer])
    off = _seconds(learn, device) / pace.seconds(usage)
    return replace(pace, flops=pace.flops / off, written=pace.written / off, call=pace.call * off)


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
