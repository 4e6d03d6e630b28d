"""Requests of many environments' processes at the same time."""

import time
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import wait
from typing import Any

from gymnasium import error as gymnasium_errors

from llmgym import errors
from llmgym.errors import EnvContractError, EnvProcessError, EnvTimeoutError
from llmgym.executors import Outcome
from llmgym.limits import CallLimit
from llmgym.messages import StopReason
from llmgym.processes.client import EnvClient, Request

CLOSE_SECONDS = 5.0
"""What an environment may take to close before its process is killed."""
PATIENCE_SECONDS = 1.0
"""How long is waited at once: a limit may become shorter meanwhile."""


def run_processes(
    requests: Mapping[int, tuple[EnvClient, Request | None]],
    *,
    limit: CallLimit,
    workers: int | None = None,
) -> dict[int, Outcome]:
    """Make a request of each process, and wait for all answers.

    Args:
        requests: by slot, the process and what is asked.
        limit: of one request; a process that is late is killed.
        workers: requests that are under way at a time; None for all.
    """
    outcomes: dict[int, Outcome] = {}
    waiting, running = deque(requests), dict[int, EnvClient]()
    try:
        while waiting or running:
            while waiting and (workers is None or len(running) < workers):
                slot = waiting.popleft()
                client, request = requests[slot]
                running[slot] = client
                try:
                    client.send(request)
                except (EnvProcessError, EnvContractError) as error:
                    outcomes[slot] = failed(error)
                    del running[slot]
            outcomes |= _arrived(running, limit)
    except BaseException:  # interrupted: no late answer for the next request
        for client in running.values():
            client.close()
        raise
    return {slot: outcomes[slot] for slot in requests}


def close_process(client: EnvClient) -> None:
    """Let an environment close, for a few seconds, then end its process."""
    if client.is_running:
        run_processes({0: (client, ("close", ()))}, limit=CallLimit(CLOSE_SECONDS))
    client.close()


def _arrived(running: dict[int, EnvClient], limit: CallLimit) -> dict[int, Outcome]:
    """Wait for an answer or a deadline; take what has arrived out of `running`."""
    if not running:
        return {}
    now = time.monotonic()
    patience = min(client.deadline(limit) - now for client in running.values())
    sources = [source for client in running.values() for source in client.sources()]
    ready = set(wait(sources, max(0.0, min(patience, PATIENCE_SECONDS))))
    is_late = time.monotonic() >= now + patience
    outcomes: dict[int, Outcome] = {}
    for slot, client in list(running.items()):
        if is_late or not ready.isdisjoint(client.sources()):
            outcome = client.poll(limit)
            if outcome is not None:
                outcomes[slot] = outcome
                del running[slot]
    return outcomes


def failed(error: Exception) -> Outcome:
    """Return the outcome of a request that could not be made."""
    name = type(error).__name__
    return Outcome(failure=StopReason.ENV_ERROR, error=f"{name}: {error}", raised=name)


def value_of(outcome: Outcome, what: str) -> Any:  # noqa: ANN401 - whatever was asked for
    """Return the value of an outcome.

    Raises:
        EnvTimeoutError: the process was late.
        EnvProcessError: it ended, or the environment raised an error that is none of ours.
    """
    if outcome.failure is None:
        return outcome.value
    message = f"{what}: {outcome.error}"
    if outcome.failure is StopReason.TIMEOUT:
        raise EnvTimeoutError(message)
    for module in (errors, gymnasium_errors):
        kind = vars(module).get(outcome.raised)
        if isinstance(kind, type) and issubclass(kind, Exception):
            raise kind(message)
    raise EnvProcessError(message)
