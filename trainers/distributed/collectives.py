"""Ranks: who this process is, and sums over all of them; the identity when alone.

Reads RANK, WORLD_SIZE and LOCAL_RANK, which every launcher sets; torch reads MASTER_ADDR and
MASTER_PORT, where the ranks meet. Starts no process.
"""

import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import Any, Self, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.batch import Metrics
from trainers.errors import BackendError, ConfigError

Item = TypeVar("Item")
IN_PHASE = "in phase "
_phases: list[str] = []
_waits = [0]
_thread = threading.local()


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among all ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_launcher(cls) -> Self:
        """Read the launcher's variables; without them, be alone.

        Raises:
            ConfigError: srun started several tasks itself, and each would be a run of its own.
        """
        # The tasks of the whole job would not do: a shell of salloc and a batch script have them.
        if (
            "RANK" not in os.environ
            and (tasks := os.environ.get("SLURM_STEP_NUM_TASKS", "1")) != "1"
        ):
            raise ConfigError(
                f"srun started {tasks} tasks, and each would be a run of its own: RANK is not set. "
                "Let srun start torchrun, as the script does that this prints:\n"
                "llmgym launch slurm -- quickstart"
            )
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        )

    @property
    def is_main(self) -> bool:
        """True on rank 0, which alone writes, prints and logs."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this local rank, or the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")

    def share(self, count: int) -> range:
        """Return this rank's block of `count` items that divide evenly among the ranks."""
        assert count % self.size == 0, f"{count} items do not divide among {self.size} ranks"
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)


def name_accelerator() -> None:
    """Say that there is no GPU to DeepSpeed, which others import as well where it is installed."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start(world: World, timeout_seconds: float, *, even_alone: bool = False) -> None:
    """Join the other ranks; nothing to do when alone, unless a library asks for a group of one.

    Raises:
        BackendError: there is no GPU for this rank, though there are some.
    """
    name_accelerator()
    if dist.is_initialized() or (world.size == 1 and not even_alone):
        return
    limit = timedelta(seconds=timeout_seconds)
    if world.size == 1:
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            os.environ.setdefault(name, value)  # deepspeed reads them
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage] - not in its __all__
        if torch.cuda.is_available():
            torch.cuda.set_device(world.device)
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=limit)
        return
    if not torch.cuda.is_available():
        _meet(world, "gloo", limit)
        return
    seen = torch.cuda.device_count()
    if world.local_rank >= seen:
        raise BackendError(
            f"local rank {world.local_rank} has no GPU: {seen} are seen here, and every rank needs "
            "one of its own. Start at most as many ranks a machine, or name more GPUs in "
            "CUDA_VISIBLE_DEVICES."
        )
    torch.cuda.set_device(world.device)  # where gather and broadcast put what they send
    _meet(world, "nccl", limit, device_id=world.device)


def _meet(world: World, backend: str, limit: timedelta, **more: Any) -> None:
    try:
        dist.init_process_group(backend, timeout=limit, **more)
    except dist.DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(error):
            raise BackendError(
                f"{place}, where ranks are to meet, is taken: by another run on this machine, "
                "perhaps. Give this one a port of its own: deepspeed --master_port 29501 ..., or "
                "torchrun --master_port 29501 ..."
            ) from error
        raise BackendError(
            f"rank {world.rank} did not meet the other {world.size - 1} at {place} within "
            f"{limit.total_seconds():g} s ({str(error).splitlines()[0]}). A host did not start, or "
            "its network does not lead there: see docs/guides/launch.md."
        ) from error


def limit_waits(timeout_seconds: float) -> None:
    """Let groups that a library made give up as soon as ours; theirs would wait for 30 minutes."""
    c10d: Any = dist.distributed_c10d  # pyright: ignore[reportPrivateImportUsage] - not in __all__
    for group in c10d._world.pg_map if dist.is_initialized() else ():
        c10d._set_pg_timeout(timedelta(seconds=timeout_seconds), group)


@final
class SideGroup:
    """All ranks once more, for one thread of each: it does not wait for the main threads.

    Made by the main threads of all ranks together. What the thread waits for goes over gloo, and
    is not counted: the watchdog watches the main thread.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._group = None
        if dist.is_initialized():
            limit = timedelta(seconds=timeout_seconds)
            self._group = dist.new_group(backend="gloo", timeout=limit)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let what this thread does inside go over this group."""
        _thread.group, _thread.phases, _thread.waits = self._group, [], [0]
        try:
            yield
        finally:
            del _thread.group, _thread.phases, _thread.waits


def _group() -> Any:  # noqa: ANN401 - a group of torch, or None for that of the main thread
    return getattr(_thread, "group", None)


def _wait() -> None:
    """Count that this rank begins to wait for others."""
    getattr(_thread, "waits", _waits)[0] += 1


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Name what is done inside in each error that leaves it; the innermost name counts."""
    phases = getattr(_thread, "phases", _phases)
    phases.append(name)
    try:
        yield
    except Exception as error:
        error.add_note(f"{IN_PHASE}{name}")
        raise
    finally:
        phases.pop()


def current_phase() -> str:
    """Return what this process is doing, `the start` before it does anything."""
    return _phases[-1] if _phases else "the start"


def phase_of(error: BaseException) -> str:
    """Return the phase that an error left, `the start` where it left none."""
    notes = (note for note in getattr(error, "__notes__", ()) if note.startswith(IN_PHASE))
    return next(notes, f"{IN_PHASE}the start").removeprefix(IN_PHASE)


def num_waits() -> int:
    """Return how often this rank began to wait for the others here; the same where all keep up."""
    return _waits[0]


def shutdown(*, together: bool = False) -> None:
    """Leave the other ranks. Call it at every end: an abandoned group can abort the exit.

    Args:
        together: every rank comes here, so wait for them. Never after an error: some may be gone.
    """
    if not dist.is_initialized():
        return
    gc.collect()  # engines that live on hold threads and groups of their own
    if together:
        dist.barrier()
    dist.destroy_process_group()


def _reduced(value: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
    if not dist.is_initialized():
        return value
    # NCCL reduces on GPUs only, gloo on the CPU; what comes from elsewhere goes back there.
    _wait()
    result = value.detach().to(_device(value), copy=True)
    dist.all_reduce(result, op=op, group=_group())
    return result.to(value.device)


def _device(value: Tensor) -> torch.device:
    """Return where a tensor has to be, for the group of this thread."""
    if dist.get_backend(_group()) == "nccl":
        return torch.device("cuda")
    return torch.device("cpu") if _group() is not None else value.device


def global_sum(value: Tensor) -> Tensor:
    """Return the sum of `value` [...] over all ranks, same shape."""
    return _reduced(value, dist.ReduceOp.SUM)


def global_max(value: Tensor) -> Tensor:
    """Return the largest `value` [...] over all ranks, elementwise."""
    return _reduced(value, dist.ReduceOp.MAX)


def gather(item: Item) -> list[Item]:
    """Return every rank's picklable `item`, in rank order, on every rank."""
    if not dist.is_initialized():
        return [item]
    _wait()
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item, group=_group())
    return items


def gather_runs(run: Tensor) -> Tensor:
    """Return every rank's `run` [n], in rank order, in one tensor [ranks * n]."""
    if not dist.is_initialized():
        return run
    _wait()
    device = _device(run)
    gathered = run.new_empty(dist.get_world_size() * run.numel(), device=device)
    parts = list(gathered.chunk(dist.get_world_size()))
    dist.all_gather(parts, run.to(device), group=_group())
    return gathered.to(run.device)


def broadcast(item: Item) -> Item:
    """Return rank 0's picklable `item` on every rank."""
    if not dist.is_initialized():
        return item
    _wait()
    items = [item]
    dist.broadcast_object_list(items, src=0, group=_group())
    return items[0]


def from_main(work: Callable[[], Item]) -> Item:
    """Do `work` on rank 0 alone; return its picklable result, or raise its error, on every rank.

    An error that left rank 0 alone would let the others wait for it until their time is over.
    One that cannot be sent is a `BackendError` with its words on the other ranks.
    """
    if not dist.is_initialized():
        return work()
    outcome: Any = None
    if dist.get_rank() == 0:
        try:
            outcome = work()
        except Exception as error:
            broadcast(_Failed(_sendable(error)))
            raise
    outcome = broadcast(outcome)
    if isinstance(outcome, _Failed):
        raise outcome.error
    return outcome


def _sendable(error: Exception) -> Exception:
    """Return an error that another rank can read: itself, or its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - classes of strangers raise anything here
        return BackendError(f"rank 0 failed: {type(error).__name__}: {error}")
    return error


def dealt(items: Sequence[Item]) -> Sequence[Item]:
    """Return this rank's share of items that are dealt out over all ranks, one after another."""
    return items[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else items


def is_main() -> bool:
    """Tell whether this is rank 0, which is alone as well where there are no others."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        dist.barrier(group=_group())


def global_metrics(metrics: Metrics) -> Metrics:
    """Pool the metrics of all ranks, whose names may differ; the same result on every rank."""
    parts: Sequence[Metrics] = gather(metrics)
    return reduce(lambda first, other: first + other, parts)


def global_moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population variance of `values` [B, T] over `mask` [B, T] and all ranks.

    In float64, in two passes, so that a large mean does not eat the variance. Nothing counted:
    mean 0, variance 0.
    """
    picked = values.detach().double()[mask]
    counted = torch.stack([picked.sum(), torch.tensor(picked.numel()).to(picked)])
    total, count = global_sum(counted)
    mean = total / count.clamp(min=1)
    variance = global_sum((picked - mean).square().sum()) / count.clamp(min=1)
    return mean, variance
