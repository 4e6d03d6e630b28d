"""Load on a server: clients that ask one request after another, or requests at random times."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from trainers.bench.requests import Answered

LoadKind = Literal["closed", "open"]
MOST_FAILURES = 3
"""Failures in a row after which a load asks whether the server is still there."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What requests are sent.

    Attributes:
        kind: closed: `clients` ask one request after another; open: at random times, `rate` per
            second on average, whatever is still answered (a Poisson process).
        clients: of a closed load.
        rate: requests per second of an open load.
        requests: in all.
        seed: of the times.
    """

    kind: LoadKind
    clients: int = 1
    rate: float = 1.0
    requests: int = 32
    seed: int = 0

    @property
    def label(self) -> str:
        """The load in words."""
        if self.kind == "closed":
            return f"{self.clients} client{'s' if self.clients > 1 else ''}"
        return f"{self.rate:g} requests/s"


def arrival_times(load: Load) -> np.ndarray:
    """Return the seconds [requests] after the start at which an open load asks."""
    rng = np.random.default_rng(load.seed)
    return np.cumsum(rng.exponential(1 / load.rate, load.requests))


def run_load(
    load: Load, prompts: Sequence[str], ask: Callable[[str], Answered], is_alive: Callable[[], bool]
) -> list[Answered]:
    """Send the requests of a load and return the answers, failed ones too, as they ended.

    Args:
        load: what is sent.
        prompts: taken in turn.
        ask: sends one request.
        is_alive: asked after failures; where it says no, nothing more is sent.
    """
    answers: list[Answered] = []
    lock, gone, numbers = threading.Lock(), threading.Event(), iter(range(load.requests))

    def send(number: int) -> None:
        answer = ask(prompts[number % len(prompts)])
        with lock:
            answers.append(answer)
            recent = answers[-MOST_FAILURES:]
        failing = answer.error is not None and all(made.error for made in recent)
        if failing and not is_alive():
            gone.set()

    def client() -> None:
        while not gone.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            send(number)

    if load.kind == "closed":
        threads = [threading.Thread(target=client, daemon=True) for _ in range(load.clients)]
        for thread in threads:
            thread.start()
    else:
        threads = _at_random_times(load, send, gone)
    for thread in threads:
        thread.join()
    return answers


def _at_random_times(
    load: Load, send: Callable[[int], None], gone: threading.Event
) -> list[threading.Thread]:
    threads, began = [], time.perf_counter()
    for number, moment in enumerate(arrival_times(load)):
        if gone.wait(max(0.0, moment - (time.perf_counter() - began))):
            break
        threads.append(threading.Thread(target=send, args=(number,), daemon=True))
        threads[-1].start()
    return threads
