"""What a pass on fake tensors takes: bytes alive at once, operations, gradients.

Every tensor that an operation makes is counted from its birth to its death, so that the peak is
that of the allocator, for any architecture: saved activations, caches, casts, and what comes and
goes between them.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from trainers.plan.fakes import GROUPED, grouped_flops, rehearsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one pass takes.

    Attributes:
        peak: most bytes at once, gradients of parameters apart.
        gradients: bytes of gradients of parameters at that moment.
        flops: operations in matrix products.
        written: bytes of all results together.
        calls: operations.
        received: bytes of weights that are gathered from other ranks.
    """

    peak: int
    gradients: int = 0
    flops: int = 0
    written: int = 0
    calls: int = 0
    received: int = 0

    def times(self, count: float) -> "Usage":
        """Return the work of several such passes, one after another."""
        return Usage(
            peak=self.peak,
            gradients=self.gradients,
            flops=round(self.flops * count),
            written=round(self.written * count),
            calls=round(self.calls * count),
            received=round(self.received * count),
        )

    def then(self, other: "Usage") -> "Usage":
        """Return the work of both, and the higher peak."""
        higher = max(self, other, key=lambda usage: usage.peak + usage.gradients)
        return Usage(
            peak=higher.peak,
            gradients=higher.gradients,
            flops=self.flops + other.flops,
            written=self.written + other.written,
            calls=self.calls + other.calls,
            received=self.received + other.received,
        )


class _Counter(TorchDispatchMode):
    """Counts the bytes of tensors that are alive; those of `resident` modules do not count.

    Gradients are kept, or each goes as soon as it is there, as where ranks share them out.
    """

    def __init__(self, resident: list[nn.Module], *, keeps_gradients: bool) -> None:
        super().__init__()
        self._keeps_gradients = keeps_gradients
        self.live = self.gradients = self.written = self.calls = 0
        self.peak, self.gradients_at_peak = 0, 0
        self._sizes: dict[int, int] = {}
        self._hooks: list[Any] = []
        self._known: list[Any] = []  # held, so that no other storage gets its address
        for module in resident:
            for tensor in (*module.parameters(), *module.buffers()):
                self._known.append(tensor.untyped_storage())
                self._sizes[self._known[-1]._cdata] = 0
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    continue
                self.gradients += 0 if parameter.grad is None else parameter.grad.nbytes
                hook = partial(self._graduate, seen=parameter.grad is not None)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))
        self.live = self.gradients

    def _graduate(self, parameter: Tensor, *, seen: bool) -> None:
        assert parameter.grad is not None
        gc.collect()  # recomputed activations hang in cycles while operations are looked at
        if not self._keeps_gradients:
            parameter.grad = None
        elif not seen:
            self.gradients += parameter.grad.nbytes
            if self.live == self.peak:  # it was this gradient's birth
                self.gradients_at_peak = self.gradients

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run one operation and count what it made."""
        result = rehearsed(func, args, kwargs or {})
        self.calls += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._born(tensor)
        return result

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[storage._cdata] = size
        weakref.finalize(storage, self._died, storage._cdata)
        self.live += size
        self.written += size
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self.gradients

    def _died(self, address: int) -> None:
        self.live -= self._sizes.pop(address, 0)

    def restart(self) -> None:
        """Forget the work so far, and what is no longer there of it."""
        self.peak, self.gradients_at_peak = self.live, self.gradients
        self.written = self.calls = 0

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Let collections of garbage pass over what exists, until the outermost of these ends.

    A collection of the whole heap takes a quarter of a second, and one is done before each pass.
    """
    gc.collect()
    gc.freeze()
    _frozen.append(True)
    try:
        yield
    finally:
        _frozen.pop()
        if not _frozen:
            gc.unfreeze()


_frozen: list[bool] = []
"""An entry for each `frozen_heap` that is open: counting what is frozen takes as long as a pass."""


def counted(
    work: Callable[[], object],
    resident: list[nn.Module],
    before: Callable[[], object] | None = None,
    *,
    keeps_gradients: bool = True,
) -> Usage:
    """Do some work on fake tensors and return what it takes beyond the resident modules.

    What `before` leaves counts as memory, its own work does not.
    """
    flops = FlopCounterMode(display=False, custom_mapping={GROUPED: grouped_flops})
    with frozen_heap():
        counter = _Counter(resident, keeps_gradients=keeps_gradients)
        try:
            with counter:
                if before is not None:
                    before()
                    counter.restart()
                with flops:
                    work()
        finally:
            counter.close()
    return Usage(
        peak=counter.peak - counter.gradients_at_peak,
        gradients=counter.gradients_at_peak,
        flops=flops.get_total_flops(),
        written=counter.written,
        calls=counter.calls,
    )
