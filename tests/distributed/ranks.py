"""A function run on several ranks over gloo on this machine, each a process of its own."""

import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from os import environ
from typing import Any

import torch

from tests.processes import process
from trainers.distributed.collectives import World, shutdown, start


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    function: Callable[..., Any], *arguments: Any, size: int = 2, timeout: float = 280
) -> list[Any]:
    """Return what `function(*arguments)` returns on each rank, in rank order.

    The function is found by its module and name, so it stands at the top of a file; what it takes
    and returns can be pickled.

    Raises:
        AssertionError: a rank raised, died or did not answer in time; says which, and why.
    """
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
    }
    processes, channels = [], {}
    for rank in range(size):
        receiving, sending = Pipe(duplex=False)
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        work = (sending, variables, timeout, function, arguments)
        processes.append(process(_rank, *work))
        processes[-1].start()
        sending.close()
        channels[receiving] = rank
    try:
        return _collected(channels, timeout)
    finally:
        for one in processes:
            one.join(timeout=5)
            if one.is_alive():  # it waits for a rank that failed
                one.kill()
                one.join()


def _collected(channels: dict[Connection, int], timeout: float) -> list[Any]:
    deadline = time.monotonic() + timeout
    results: dict[int, Any] = {}
    while len(results) < len(channels):
        waiting = [channel for channel, rank in channels.items() if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        late = [channels[channel] for channel in waiting]
        assert ready, f"ranks {late} did not answer within {timeout} s"
        failures = []
        for channel in ready:
            rank = channels[channel]
            try:
                fine, outcome = pickle.loads(channel.recv_bytes())
            except EOFError:
                fine, outcome = False, "it died without a word"
            results[rank] = outcome
            failures += [] if fine else [f"rank {rank} failed:\n{outcome}"]
        assert not failures, "\n".join(failures)
    return [results[rank] for rank in range(len(channels))]


def _rank(
    channel: Connection,
    variables: dict[str, str],
    timeout: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    environ.update(variables)
    torch.set_num_threads(1)
    try:
        start(World.from_launcher(), timeout)
        outcome = True, function(*arguments)
    except Exception:  # noqa: BLE001 - whatever it is, the test says it
        outcome = False, traceback.format_exc()
    channel.send_bytes(pickle.dumps(outcome))
    channel.close()
    shutdown()
