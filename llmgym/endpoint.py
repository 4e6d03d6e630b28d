"""Requests to servers: JSON over HTTP, repeated where that may help, many at a time.

A token is read from an environment variable, for each request, and is never written down: not in
messages, records or settings.
"""

import http.client
import json
import os
import random
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, final
from urllib.parse import urlsplit

from llmgym.errors import RewardError

TOKEN_VARIABLE = "LLMGYM_ENDPOINT_TOKEN"
"""Environment variable with the token of requests, unless another one is named."""
MAX_ANSWER = 2**24
"""Bytes of the longest answer."""
MAX_SHOWN = 200
"""Characters of an answer that a message quotes."""
REACH_SECONDS = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds before a request is repeated the first time, doubled from then on."""
REPEATED = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""

_JITTER = random.SystemRandom()
"""So that many clients do not repeat together; leaves the shared generator alone."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class EndpointError(Exception):
    """Raised where a request fails for good; `retries` counts how often it was repeated.

    Attributes:
        retries: requests that were repeated.
        status: of the last answer; 0 where there was none.
        pause: seconds after which the server asks to be asked again; 0 where it does not say.
    """

    def __init__(self, message: str, retries: int = 0, status: int = 0, pause: float = 0.0) -> None:
        super().__init__(message)
        self.retries, self.status, self.pause = retries, status, pause


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address that takes JSON and answers JSON.

    Attributes:
        url: http or https.
        timeout: seconds that a request may take.
        retries: how often it is repeated.
        variable: environment variable that holds the token, if there is one.
    """

    url: str
    timeout: float = 30.0
    retries: int = 3
    variable: str = TOKEN_VARIABLE

    def __post_init__(self) -> None:
        """Refuse what is no address, and settings out of range."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RewardError(f"url must be http://HOST:PORT/PATH or https://..., got {self.url!r}")
        if parts.username or parts.password:
            raise RewardError(
                f"url holds a name or a password. Put the token into the variable {self.variable}"
            )
        if self.timeout <= 0 or self.retries < 0:
            raise RewardError(
                "timeout must be above 0 and retries 0 or more, got "
                f"{self.timeout} and {self.retries}"
            )
        if self.variable != TOKEN_VARIABLE and not os.environ.get(self.variable):
            raise RewardError(
                f"the environment variable {self.variable} is to hold the token for {self.url}, "
                "and is not set"
            )

    def reach(self) -> None:
        """Connect once.

        Raises:
            RewardError: nothing listens there.
        """
        parts = urlsplit(self.url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        try:
            socket.create_connection((str(parts.hostname), port), REACH_SECONDS).close()
        except OSError as error:
            raise RewardError(
                f"{self.url} cannot be reached: {error}. Start the server, or correct the url"
            ) from error

    def post(self, body: object) -> tuple[Any, int]:
        """Send JSON; return the answer and how often the request was repeated.

        Raises:
            EndpointError: it failed for good.
        """
        for retries in range(self.retries + 1):
            try:
                return self._once(body), retries
            except EndpointError as error:
                may_help = error.status in (0, *REPEATED)
                if not may_help or retries == self.retries:
                    raise EndpointError(str(error), retries, error.status) from error
                doubled = FIRST_PAUSE * 2**retries * _JITTER.uniform(0.5, 1.0)
                time.sleep(min(LONGEST_PAUSE, error.pause or doubled))
        raise AssertionError

    def _once(self, body: object) -> Any:  # noqa: ANN401 - any JSON
        token = os.environ.get(self.variable, "")
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        ends = time.monotonic() + self.timeout
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.loads(_read(response, ends))
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(MAX_SHOWN * 4).decode("utf-8", "replace")
            message = f"{self.url} answered {error.code}: {self._shown(text, token)}"
            after = error.headers.get("Retry-After", "")
            pause = float(after) if after.isdecimal() else 0.0
            raise EndpointError(message, status=error.code, pause=pause) from None
        except TimeoutError:
            raise EndpointError(f"{self.url} did not answer in {self.timeout:g} s") from None
        except ValueError as error:
            raise EndpointError(f"{self.url} answered no JSON: {error}", status=200) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                reason = f"no answer in {self.timeout:g} s"
            raise EndpointError(f"{self.url} cannot be reached: {reason}") from None

    def _shown(self, text: str, token: str) -> str:
        words = " ".join((text.replace(token, "(hidden)") if token else text).split())
        return words[:MAX_SHOWN] or "nothing"


def at_once(
    function: Callable[[Item], Result], items: Sequence[Item], concurrency: int
) -> list[Result]:
    """Call a function for each item, several at a time; return the results in order."""
    pool = ThreadPoolExecutor(max(1, min(concurrency, len(items))), "llmgym-endpoint")
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(response: http.client.HTTPResponse, ends: float) -> bytes:
    """Read an answer; one that drips is late as well."""
    data = b""
    while chunk := response.read1(65536):
        data += chunk
        if time.monotonic() > ends:
            raise TimeoutError
        if len(data) > MAX_ANSWER:
            raise ValueError(f"more than {MAX_ANSWER} bytes")
    return data
