"""The trainer's side of one generation server: HTTP, and errors that say what to do."""

import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from trainers.errors import GenerationError, LostServerError
from trainers.generation.serving.protocol import (
    PATH_HEADER,
    PROTOCOL,
    SESSION_HEADER,
    TOKEN_VARIABLE,
    VERSION_HEADER,
)

STATUS_SECONDS = 10.0
"""How long a server may take to say what it is."""
BUILD_SECONDS = 900.0
"""How long it may take to build its engine."""
NOT_OPEN = 410
"""Code of a server that was restarted, and holds nothing."""
Take = Callable[[int, Sequence[int], Sequence[float]], None]
"""Takes a finished response: number of the request, ids, log-probabilities."""


@final
class ServerClient:
    """Speaks to one server.

    Args:
        url: `http://HOST:PORT`.
        timeout: seconds that it may be silent.
        token: secret of every request; empty: none.
    """

    def __init__(self, url: str, *, timeout: float, token: str = "") -> None:
        self.url = url
        self._timeout = timeout
        self._headers = {"Authorization": f"Bearer {token}"}

    def status(self) -> dict[str, Any]:
        """Return what the server holds.

        Raises:
            LostServerError: it does not answer.
            GenerationError: it is another program, or speaks another protocol.
        """
        with self._sent("GET", "/status", timeout=STATUS_SECONDS) as response:
            status = _parsed(response.read())
        if status.get("protocol") != PROTOCOL:
            raise GenerationError(
                f"{self.url} speaks protocol {status.get('protocol')} and this run {PROTOCOL}: "
                "install the same llmgym-rl in both environments, and start the server again"
            )
        return status

    def open(self, session: str, described: Mapping[str, Any]) -> dict[str, Any]:
        """Let the server build its engine for a model, or use the one that it has.

        Raises:
            LostServerError: it does not answer.
            GenerationError: it holds another model, or cannot run this one.
        """
        body = json.dumps({"protocol": PROTOCOL, "session": session, **described})
        with self._sent("POST", "/open", body.encode(), timeout=BUILD_SECONDS) as response:
            return _parsed(response.read())

    def send_weights(self, path: Path, session: str, version: int, *, is_local: bool) -> None:
        """Send a weights file, or where it is to a server that reads this machine's files.

        Raises:
            LostServerError: the server was lost before it had loaded all.
            GenerationError: it refused them; it may have none now.
        """
        named = {SESSION_HEADER: session, VERSION_HEADER: str(version)}
        if is_local:
            with self._sent("POST", "/weights", b"", {**named, PATH_HEADER: str(path)}):
                return
        with path.open("rb") as file:
            sized = {**named, "Content-Length": str(path.stat().st_size)}
            with self._sent("POST", "/weights", file, sized):
                return

    def generate(
        self,
        asked: Mapping[str, Any],
        session: str,
        version: int,
        take: Take,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Write responses to requests; each is taken as it ends.

        `check` is called about once a second, and raises where they are not needed any more.

        Raises:
            LostServerError: the server was lost, or silent for too long, in mid-rollout.
            GenerationError: it refused, or answered with weights of another version.
        """
        headers = {SESSION_HEADER: session, VERSION_HEADER: str(version)}
        body = json.dumps(asked).encode()
        with self._sent("POST", "/generate", body, headers) as response:
            while True:
                line = _parsed(response.readline())
                check()
                if "request" in line:
                    take(line["request"], line["ids"], line["logprobs"])
                elif "error" in line:
                    raise GenerationError(f"{self.url} gave the rollout up: {line['error']}")
                elif "done" in line:
                    self._check_version(line["version"], version)
                    return

    def sleep(self, session: str) -> None:
        """Let the server give its memory back, where it can."""
        with self._sent("POST", "/sleep", b"", {SESSION_HEADER: session}):
            return

    def _check_version(self, wrote: int, version: int) -> None:
        if wrote != version:
            raise GenerationError(
                f"{self.url} wrote with policy version {wrote}, and the rollout is of version "
                f"{version}: stale text is never trained on"
            )

    @contextmanager
    def _sent(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401 - bytes, or a file that is open
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:  # noqa: ANN401 - an iterator of one response
        """Send a request and yield the response to it, whose code says that it was answered."""
        address = urlsplit(self.url)
        limit = self._timeout if timeout is None else timeout
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=limit)
        try:
            connection.request(method, path, body, {**self._headers, **(headers or {})})
            response = connection.getresponse()
            if response.status != 200:
                self._refuse(response)
            yield response
        except TimeoutError as error:
            raise LostServerError(f"{self.url} was silent for {limit:g} s at {path}") from error
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            reason = str(error) or type(error).__name__
            raise LostServerError(f"{self.url} was lost at {path}: {reason}") from error
        finally:
            connection.close()

    def _refuse(self, response: http.client.HTTPResponse) -> None:
        message = _parsed(response.read()).get("error")
        if response.status == NOT_OPEN:
            raise LostServerError(f"{self.url} was started again: {message}")
        remedy = f"\nSet {TOKEN_VARIABLE} to one secret on both sides." * (response.status == 401)
        raise GenerationError(f"{self.url} refused: {message}{remedy}")


def _parsed(text: bytes) -> dict[str, Any]:
    """Return an object of JSON; an empty text is a connection that ended."""
    if not text:
        raise ConnectionError("the connection ended")
    return json.loads(text)
