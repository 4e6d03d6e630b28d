"""What a generation worker does between requests: one engine, one session, one policy version.

Holds no engine of its own and speaks no HTTP (`server.py`). Needs the standard library only: the
trainers' packages are not in the environment of an engine.
"""

import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, final

from trainers.generation.serving.protocol import PROTOCOL, read_records

ENGINE_ERRORS = (
    ValueError, OSError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError,
)  # fmt: skip
"""What an engine raises over a model or a request that it cannot take."""


class RefusedError(RuntimeError):
    """Raised when a request does not fit the worker's state; nothing was changed."""


class NotOpenError(RefusedError):
    """Raised when the worker serves nobody, as after a start."""


Finished = tuple[int, Sequence[int], Sequence[float]]
"""A request's key, and the ids and log-probabilities of its response."""


class TextEngine(Protocol):
    """What a worker holds; one thread makes all calls."""

    name: str
    can_sleep: bool

    def update(self, path: Path, version: int) -> None:
        """Load the weights of a file that is whole, and forget what older ones computed."""
        ...

    def add(self, key: int, request: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        """Take a request; raises ValueError where it can never be answered."""
        ...

    def is_busy(self) -> bool:
        """Tell whether a request is unfinished."""
        ...

    def step(self) -> list[Finished]:
        """Write one token of each request; return those that ended with it."""
        ...

    def abort(self, keys: Sequence[int]) -> None:
        """Drop requests."""
        ...

    def sleep(self) -> None:
        """Give weights and cache back; the next `update` takes them again."""
        ...


@final
class Worker:
    """One engine, the session that uses it, and the version of its weights.

    Args:
        build: makes the engine from what `/open` describes; raises ValueError where it cannot.
    """

    def __init__(self, build: Callable[[Mapping[str, Any]], TextEngine]) -> None:
        self._build = build
        self._engine: TextEngine | None = None
        self._described: Mapping[str, Any] = {}
        self._session: str | None = None
        self._version: int | None = None
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue()
        self._streams: dict[int, tuple[int, queue.Queue[Any]]] = {}
        self._next_key = 0

    def run(self) -> None:
        """Do what handlers ask for, and write text between; the engine lives in this thread.

        Raises:
            Exception: the engine failed while writing; the process is of no use any more.
        """
        while True:
            is_busy = self._engine is not None and self._engine.is_busy()
            try:
                self._commands.get(block=not is_busy)()
                continue
            except queue.Empty:
                pass
            self._step()

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """Run a function between two steps of the engine, and return its result."""
        result: Future[Any] = Future()

        def command() -> None:
            try:
                result.set_result(function(*arguments))
            except ENGINE_ERRORS as error:
                result.set_exception(error)

        self._commands.put(command)
        return result.result()

    def _step(self) -> None:
        assert self._engine is not None
        finished = self._engine.step()
        for _, stream in self._streams.values():
            stream.put("step")
        for key, ids, logprobs in finished:
            number, stream = self._streams.pop(key)
            stream.put({"request": number, "ids": list(ids), "logprobs": list(logprobs)})

    def status(self) -> dict[str, Any]:
        """Return what the worker holds."""
        return {
            "protocol": PROTOCOL,
            "engine": self._engine.name if self._engine else None,
            "can_sleep": bool(self._engine and self._engine.can_sleep),
            "session": self._session,
            "version": self._version,
        }

    def open(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Build the engine for a model, or let a session take over the one that is built for it.

        Raises:
            RefusedError: another protocol, or another model than the one that is here.
            ValueError: the engine cannot run this model.
        """
        if asked["protocol"] != PROTOCOL:
            raise RefusedError(
                f"the trainer speaks protocol {asked['protocol']} and this worker {PROTOCOL}: "
                "install the same llmgym-rl in both environments"
            )
        described = {key: asked[key] for key in ("model", "tokenizer", "engine")}
        if self._engine is None:
            self._engine = self._build(described)
            self._described = described
        _check_same(self._described, described)
        self._abort(f"session {asked['session']} took over this worker")
        self._session, self._version = asked["session"], None
        return self.status()

    def load(self, path: Path, session: str | None, version: int) -> dict[str, Any]:
        """Load a weights file; until it is loaded whole, the worker has no weights.

        Raises:
            RefusedError: of another session, or older than the weights that are here.
            WeightsError: the file is not whole; the weights that are here stay.
        """
        engine = self._of(session)
        if self._version is not None and version < self._version:
            raise RefusedError(
                f"weights of version {version} came after those of version {self._version}: "
                "they are out of order"
            )
        read_records(path, version)
        self._abort(f"weights of version {version} came in mid-rollout")
        self._version = None
        engine.update(path, version)
        self._version = version
        return self.status()

    def generate(
        self, asked: Mapping[str, Any], session: str | None, version: int
    ) -> "queue.Queue[Any]":
        """Begin to write; return the queue that responses come from.

        Raises:
            RefusedError: of another session or policy version.
            ValueError: a request can never be answered.
        """
        engine = self._of(session)
        if version != self._version:
            held = "none" if self._version is None else f"version {self._version}"
            raise RefusedError(f"the rollout is of policy version {version}; weights here: {held}")
        stream: queue.Queue[Any] = queue.Queue()
        for number, request in enumerate(asked["requests"]):
            key, self._next_key = self._next_key, self._next_key + 1
            engine.add(key, request, asked["sampling"])
            self._streams[key] = (number, stream)
        return stream

    def sleep(self, session: str | None) -> dict[str, Any]:
        """Give memory back; the weights are gone.

        Raises:
            RefusedError: of another session.
        """
        engine = self._of(session)
        if engine.can_sleep:
            self._abort("the worker was sent to sleep")
            engine.sleep()
            self._version = None
        return self.status()

    def _of(self, session: str | None) -> TextEngine:
        if self._engine is None or self._session is None:
            raise NotOpenError("this worker serves no run yet")
        if session != self._session:
            raise RefusedError(
                "another run has taken this worker: give each run workers of its own"
            )
        return self._engine

    def forget(self, stream: "queue.Queue[Any]") -> None:
        """Drop the requests of a stream that nobody reads any more."""
        keys = [key for key, (_, other) in self._streams.items() if other is stream]
        if self._engine is not None and keys:
            self._engine.abort(keys)
        for key in keys:
            del self._streams[key]

    def _abort(self, reason: str) -> None:
        for _, stream in list(self._streams.values()):
            stream.put({"error": reason})
            self.forget(stream)


def _check_same(held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a model, a tokenizer or an engine other than those held."""
    for part in ("model", "tokenizer", "engine"):
        if held[part] != asked[part]:
            raise RefusedError(
                f"this worker holds another {part}: {_first(held[part], asked[part])}"
            )


def _first(held: Any, asked: Any) -> str:  # noqa: ANN401 - values of JSON
    """Name the first difference between two values."""
    if not isinstance(held, Mapping) or not isinstance(asked, Mapping):
        return f"{held}, asked for {asked}"
    names = sorted({*held, *asked})
    name = next(name for name in names if held.get(name) != asked.get(name))
    return f"{name} is {held.get(name)} here and {asked.get(name)} in the run"
