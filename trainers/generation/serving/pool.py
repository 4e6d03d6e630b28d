"""All generation servers of a rank: each writes a part of the requests, and takes over lost ones.

A server is lost where it does not answer, or is silent for too long. Its requests go to the others;
where none is left, each is tried again: a worker of this run is started anew, one at an address is
opened anew, and the weights are sent once more.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from trainers.errors import LostServerError, RolloutStoppedError
from trainers.generation.serving.client import ServerClient
from trainers.generation.serving.process import LocalWorker

REVIVALS = 2
"""How often a rollout continues after all servers were lost."""
Answer = tuple[Sequence[int], Sequence[float]]
"""Ids and log-probabilities of a response."""
_log = logging.getLogger(__name__)


@final
@dataclass
class Endpoint:
    """One server as this rank sees it.

    Attributes:
        worker: the process behind it, where this rank starts it.
        url: its address; of a worker, of the process that runs now.
        failure: why it is lost; None while it serves.
        status: its message when it was opened.
    """

    timeout: float
    token: str = ""
    worker: LocalWorker | None = None
    url: str = ""
    failure: str | None = "it was not opened yet"
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def client(self) -> ServerClient:
        """What speaks to it."""
        return ServerClient(self.url, timeout=self.timeout, token=self.token)

    def open(self, session: str, described: Mapping[str, Any]) -> None:
        """Start the worker where there is one, and let the server build its engine.

        Raises:
            LostServerError: it does not answer.
            GenerationError: it cannot run the model, or holds another.
        """
        if self.worker is not None:
            self.url, self.token = self.worker.start(), self.worker.token
        try:
            self.client.status()
            self.status = self.client.open(session, described)
        except LostServerError as error:
            if self.worker is None:
                raise
            raise LostServerError(f"{error}\n{self.worker.tail()}") from error
        self.failure = None


@final
class Pool:
    """The servers that a rank writes with.

    Args:
        endpoints: the servers.
        session: of the run, the same on all ranks that share servers.
        described: the model and the engine, as `/open` takes them.
        owns: this rank opens the servers and sends the weights; else another one does.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        session: str,
        described: Mapping[str, Any],
        owns: bool,
    ) -> None:
        self._endpoints = list(endpoints)
        self._session, self._described, self._owns = session, described, owns
        self._weights: tuple[Path, int] | None = None
        self._is_stopping = False

    @property
    def engine(self) -> str:
        """Name and version of the first server's engine."""
        return str(self._endpoints[0].status.get("engine"))

    def open(self) -> None:
        """Open every server.

        Raises:
            LostServerError: one does not answer.
            GenerationError: one cannot run the model, or holds another.
        """
        for endpoint in self._endpoints:
            if self._owns:
                endpoint.open(self._session, self._described)
            else:
                endpoint.status, endpoint.failure = endpoint.client.status(), None

    def push(self, path: Path, version: int) -> None:
        """Send the weights of a version to every server, lost ones included.

        Raises:
            LostServerError: none took them.
            GenerationError: one refused them.
        """
        self._weights = (path, version)
        self._each(self._push, self._endpoints)
        if not self._live():
            raise LostServerError(f"no generation server took weights.\n{self._failures()}")

    def _push(self, endpoint: Endpoint) -> None:
        assert self._weights is not None
        path, version = self._weights
        is_lost = endpoint.failure is not None
        for attempt in range(2):
            try:
                if is_lost or attempt:
                    endpoint.open(self._session, self._described)
                is_local = endpoint.worker is not None
                endpoint.client.send_weights(path, self._session, version, is_local=is_local)
            except LostServerError as error:
                endpoint.failure = str(error)
                if is_lost:
                    return
                continue
            if is_lost or attempt:
                _log.warning("generation server %s serves again", endpoint.url)
            return

    def write(
        self, requests: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any], version: int
    ) -> list[Answer]:
        """Return the answer to each request.

        Raises:
            LostServerError: no server is left, though each was tried again.
            GenerationError: one refused, or holds weights of another version; or it is stopping.
        """
        answers: dict[int, Answer] = {}
        revivals = 0
        while left := [i for i in range(len(requests)) if i not in answers]:
            self.check_stopping()
            live = self._live()
            if not live:
                if revivals == REVIVALS:
                    raise LostServerError(f"no generation server is left.\n{self._failures()}")
                revivals += 1
                self._revive(version)
                continue
            shares = {id(end): left[k :: len(live)] for k, end in enumerate(live)}

            def ask(endpoint: Endpoint, shares: Mapping[int, list[int]] = shares) -> None:
                mine = shares[id(endpoint)]
                asked = {"requests": [requests[i] for i in mine], "sampling": sampling}

                def take(number: int, ids: Sequence[int], logprobs: Sequence[float]) -> None:
                    answers[mine[number]] = (ids, logprobs)

                self._ask(endpoint, asked, version, take)

            self._each(ask, [end for end in live if shares[id(end)]])
        return [answers[i] for i in range(len(requests))]

    def _ask(
        self, endpoint: Endpoint, asked: Mapping[str, Any], version: int, take: Callable[..., None]
    ) -> None:
        try:
            check = self.check_stopping
            endpoint.client.generate(asked, self._session, version, take, check=check)
        except LostServerError as error:
            endpoint.failure = str(error)
            if endpoint.worker is not None:
                endpoint.failure += f"\n{endpoint.worker.tail()}"
            _log.warning("in mid-rollout, %s; its requests are asked again", error)

    def _revive(self, version: int) -> None:
        """Try every server again."""
        if self._owns:
            self._each(self._push, self._endpoints)
            return
        for endpoint in self._endpoints:
            try:
                status = endpoint.client.status()
            except LostServerError as error:
                endpoint.failure = str(error)
                continue
            if (status["session"], status["version"]) == (self._session, version):
                endpoint.failure = None

    def stop(self) -> None:
        """Let `write`, which runs in another thread, raise `RolloutStoppedError` soon."""
        self._is_stopping = True

    def check_stopping(self) -> None:
        """Raise where the rollout is not needed any more.

        Raises:
            RolloutStoppedError: it is not.
        """
        if self._is_stopping:
            raise RolloutStoppedError("the run ends, and this rollout is not needed")

    def sleep(self) -> bool:
        """Let workers of this run give memory back; True where weights are gone with it."""
        sleeping = [end for end in self._live() if end.worker and end.status["can_sleep"]]
        for endpoint in sleeping:
            endpoint.client.sleep(self._session)
        return bool(sleeping)

    def close(self) -> None:
        """End the workers of this run."""
        for endpoint in self._endpoints:
            if endpoint.worker is not None:
                endpoint.worker.stop()

    def _live(self) -> list[Endpoint]:
        return [endpoint for endpoint in self._endpoints if endpoint.failure is None]

    def _failures(self) -> str:
        return "\n".join(str(endpoint.failure) for endpoint in self._endpoints)

    def _each(self, work: Callable[[Endpoint], None], endpoints: Sequence[Endpoint]) -> None:
        """Do `work` for several servers at the same time; raise the first error, once all ended."""
        with ThreadPoolExecutor(max(len(endpoints), 1)) as threads:
            for done in [threads.submit(work, endpoint) for endpoint in endpoints]:
                done.result()
