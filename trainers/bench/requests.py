"""One request to a server with the API of OpenAI, streamed: when each piece came. No torch."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, final
from urllib.parse import urlsplit

from trainers.errors import ConfigError

CHARACTERS = 200
"""Of an answer that is quoted in a message."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Where requests go.

    Attributes:
        url: ends in /v1.
        model: as requests name it.
        token: that they carry, or None.
        timeout: seconds without a byte after which a request has failed.
        ignores_ends: asks that no end token ends a response; transformers serve refuses that.
    """

    url: str
    model: str
    token: str | None = None
    timeout: float = 120.0
    ignores_ends: bool = True

    def connection(self) -> HTTPConnection:
        """Return a connection that is not open yet."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self.timeout)

    def path(self, end: str) -> str:
        """Return the path of a route below /v1."""
        return f"{urlsplit(self.url).path.rstrip('/')}{end}"

    @property
    def headers(self) -> dict[str, str]:
        """What every request says of itself."""
        own = {"Content-Type": "application/json"}
        return own if self.token is None else {**own, "Authorization": f"Bearer {self.token}"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A request and when its pieces came, in seconds of one clock.

    Attributes:
        began: when it was sent.
        pieces: when each piece of text came; none of control tokens alone.
        ended: when the answer was complete, or when it failed.
        tokens: that were written, as the server counts them.
        error: why it failed, or None.
    """

    began: float
    pieces: tuple[float, ...] = ()
    ended: float
    tokens: int = 0
    error: str | None = None

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.began

    @property
    def seconds(self) -> float:
        """Seconds to the end."""
        return self.ended - self.began


@final
@dataclass(slots=True)
class _Pieces:
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    is_done: bool = False


def check_url(url: str) -> str:
    """Return an address without a slash at its end.

    Raises:
        ConfigError: it is none of an API.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url} is no address of a server: --endpoint http://127.0.0.1:8000/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def listed_models(api: Api) -> list[str]:
    """Return the models that a server lists.

    Raises:
        ConfigError: it refuses the token.
        OSError: it does not answer.
    """
    connection = api.connection()
    try:
        connection.request("GET", api.path("/models"), headers=api.headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except HTTPException as error:
        raise OSError(f"{api.url} does not answer as a server of this API: {error!r}") from error
    finally:
        connection.close()
    if response.status == 401:
        raise ConfigError(
            f"{api.url} refuses the token. Set LLMGYM_ENDPOINT_TOKEN to the token that it was "
            "started with."
        )
    try:
        return [str(model["id"]) for model in json.loads(text)["data"]]
    except (ValueError, LookupError, TypeError):  # transformers serve lists its own cache
        return []


def ask(api: Api, prompt: str, new_tokens: int) -> Answered:
    """Send one chat request and read its answer piece by piece; a failure is in the answer."""
    body = {
        "model": api.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": new_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    fixed = {"ignore_eos": True} if api.ignores_ends else {}
    began = time.perf_counter()
    pieces, connection = _Pieces(), api.connection()
    try:
        text = json.dumps({**body, **fixed})
        connection.request("POST", api.path("/chat/completions"), text, api.headers)
        response = connection.getresponse()
        if response.status != 200:
            content = response.read().decode(errors="replace")
            raise OSError(f"HTTP {response.status}: {content[:CHARACTERS]}")
        for event in _events(response):
            _take(pieces, event)
        if not pieces.is_done:
            raise OSError("the answer broke off")
    except (OSError, HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        return Answered(
            began=began, pieces=tuple(pieces.times), ended=time.perf_counter(), error=reason
        )
    finally:
        connection.close()
    return Answered(
        began=began,
        pieces=tuple(pieces.times),
        ended=time.perf_counter(),
        tokens=pieces.tokens or len(pieces.times),
    )


def _events(response: HTTPResponse) -> Iterator[str]:
    """Yield the data of each server-sent event."""
    for line in response:
        if line.startswith(b"data:"):
            yield line[5:].strip().decode()


def _take(pieces: _Pieces, event: str) -> None:
    if event == "[DONE]":
        pieces.is_done = True
        return
    answer: dict[str, Any] = json.loads(event)
    if "error" in answer:
        raise OSError(str(answer["error"])[:CHARACTERS])
    for choice in answer.get("choices") or ():
        if choice.get("finish_reason"):
            pieces.is_done = True
        if (choice.get("delta") or {}).get("content"):
            pieces.times.append(time.perf_counter())
    usage = answer.get("usage") or {}
    pieces.tokens = int(usage.get("completion_tokens") or pieces.tokens)
