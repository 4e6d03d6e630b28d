"""Measures a server that answers over HTTP: waits for its health, loads it, gives percentiles."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, final
from urllib.parse import urlsplit

import numpy as np

from llmgym.endpoint import TOKEN_VARIABLE
from trainers.bench.load import Load, run_load
from trainers.bench.requests import Answered, Api, ask, check_url, listed_models
from trainers.bench.texts import SENTENCES
from trainers.compress.timing import processor
from trainers.errors import ConfigError, LostServerError
from trainers.inference.endpoint_files import EndpointFile, log_tail, read_endpoint
from trainers.inference.server_process import is_healthy

PERCENTILES = (50, 90, 95, 99)
POLL = 0.5


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """How a server is measured.

    Attributes:
        clients: of closed loads, one load per number.
        rates: requests per second of open loads, one load per number.
        requests: of each load; at least as many as it has clients.
        prompt_words: of each prompt.
        new_tokens: of each response.
        wait_seconds: how long its health is waited for.
        timeout: seconds without a byte after which a request has failed.
        warmups: requests before, which do not count.
        seed: of the times of open loads.
    """

    clients: tuple[int, ...] = (1, 4, 16)
    rates: tuple[float, ...] = ()
    requests: int = 32
    prompt_words: int = 48
    new_tokens: int = 32
    wait_seconds: float = 600.0
    timeout: float = 120.0
    warmups: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what measures nothing.

        Raises:
            ConfigError: names it.
        """
        if not self.clients and not self.rates:
            raise ConfigError("no load is named: --clients 1 4 16 or --rates 0.5 2")
        if any(count < 1 for count in self.clients) or any(not rate > 0 for rate in self.rates):
            raise ConfigError("clients are counted from 1, and rates are above 0.")
        if self.requests < 1 or self.new_tokens < 2 or self.prompt_words < 1:
            raise ConfigError("a load needs requests, a prompt, and responses of 2 tokens or more.")

    @property
    def loads(self) -> list[Load]:
        """The loads, in their order."""
        closed = [
            Load(kind="closed", clients=count, requests=max(self.requests, count))
            for count in self.clients
        ]
        opened = [
            Load(kind="open", rate=rate, requests=self.requests, seed=self.seed)
            for rate in self.rates
        ]
        return closed + opened


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """What was measured under one load.

    Attributes:
        load: what was sent.
        sent: requests that were.
        failed: of them.
        errors: the first reasons, each once.
        seconds: from the first request to the last answer.
        tokens_per_second: of all answers together.
        requests_per_second: answered ones.
        first_token: seconds to the first piece of text, by percentile.
        between_tokens: seconds between pieces of text.
        complete: seconds to the end of an answer.
    """

    load: Load
    sent: int
    failed: int
    errors: tuple[str, ...]
    seconds: float
    tokens_per_second: float
    requests_per_second: float
    first_token: dict[int, float]
    between_tokens: dict[int, float]
    complete: dict[int, float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointResult:
    """What was measured of a server.

    Attributes:
        url: of it.
        model: as requests name it.
        engine: where `llmgym serve` started it, else None.
        figures: of each load that was begun.
        lost: why the server was lost on the way, or None.
        ignores_ends: no end token ended a response; else responses may be shorter.
        settings: of the measurement.
        machine: where the requests came from.
    """

    url: str
    model: str
    engine: str | None
    figures: tuple[LoadFigures, ...]
    lost: str | None
    ignores_ends: bool
    settings: EndpointSettings
    machine: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"schema": 1, "kind": "endpoint", **asdict(self)}


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """Return the percentiles of values; none of no value."""
    if not values:
        return {}
    at = np.percentile(values, PERCENTILES)
    return dict(zip(PERCENTILES, map(float, at), strict=True))


def load_figures(load: Load, answers: Sequence[Answered]) -> LoadFigures:
    """Return what answers say; times are of those that did not fail."""
    good = [answer for answer in answers if answer.error is None]
    errors = list(dict.fromkeys(answer.error for answer in answers if answer.error))
    seconds = 0.0
    if answers:
        seconds = max(made.ended for made in answers) - min(made.began for made in answers)
    gaps = [after - before for made in good for before, after in pairwise(made.pieces)]
    return LoadFigures(
        load=load,
        sent=len(answers),
        failed=len(answers) - len(good),
        errors=tuple(errors[:3]),
        seconds=seconds,
        tokens_per_second=sum(made.tokens for made in good) / seconds if seconds else 0.0,
        requests_per_second=len(good) / seconds if seconds else 0.0,
        first_token=percentiles([made.first for made in good if made.pieces]),
        between_tokens=percentiles(gaps),
        complete=percentiles([made.seconds for made in good]),
    )


def endpoint_prompts(words: int, count: int = 64) -> list[str]:
    """Return prompts of a number of words that differ from their first word on.

    Servers keep the beginnings of prompts they have read, and would answer equal ones sooner.
    """
    texts = []
    for number in range(count):
        turn = number % len(SENTENCES)
        pool = f"{number} " + " ".join((*SENTENCES[turn:], *SENTENCES[:turn]))
        repeated = pool.split() * (words // len(pool.split()) + 1)
        texts.append(" ".join(repeated[:words]))
    return texts


def _health(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return is_healthy(parts.hostname or "", port)


def _lost(url: str, endpoint: EndpointFile | None) -> str:
    """Return why a server does not answer, as far as this machine knows."""
    if endpoint is None:
        return f"{url} does not answer any more."
    known = read_endpoint(url)
    code = None if known is None else known.exit_code
    how = "does not answer any more" if code is None else f"ended with exit code {code}"
    return f"the {endpoint.engine} server of {url} {how}.\n{log_tail(endpoint.log)}"


def wait_for_health(url: str, seconds: float) -> EndpointFile | None:
    """Wait until a server answers; return what this machine knows of it.

    Raises:
        LostServerError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + seconds
    while not _health(url):
        endpoint = read_endpoint(url)
        if endpoint is not None and endpoint.exit_code is not None:
            raise LostServerError(_lost(url, endpoint))
        if time.monotonic() > deadline:
            raise LostServerError(
                f"nothing answers at {url} within {seconds:g} s (--wait-seconds). Start a server: "
                "llmgym serve MODEL"
            )
        time.sleep(POLL)
    return read_endpoint(url)


def _warmed(
    api: Api, prompts: Sequence[str], settings: EndpointSettings, endpoint: EndpointFile | None
) -> Api:
    """Send the requests that do not count; return how the server is asked from now on.

    Raises:
        LostServerError: none was answered.
    """
    first = ask(api, prompts[-1], settings.new_tokens)
    if first.error is not None and "ignore_eos" in first.error:
        api = replace(api, ignores_ends=False)
        first = ask(api, prompts[-1], settings.new_tokens)
    more = [ask(api, prompt, settings.new_tokens) for prompt in prompts[: settings.warmups - 1]]
    if all(answer.error for answer in (first, *more)):
        log = log_tail(endpoint.log) if endpoint else ""
        raise LostServerError(f"{api.url} answers no request: {first.error}\n{log}")
    return api


def bench_endpoint(url: str, settings: EndpointSettings | None = None) -> EndpointResult:
    """Measure a server; where it is lost on the way, what was measured so far is returned.

    Args:
        url: of its API, such as http://127.0.0.1:8000/v1.
        settings: how.

    Raises:
        ConfigError: the address is none, or the server refuses the token.
        LostServerError: it never answered.
    """
    settings, url = settings or EndpointSettings(), check_url(url)
    endpoint = wait_for_health(url, settings.wait_seconds)
    token = os.environ.get(TOKEN_VARIABLE) or (None if endpoint is None else endpoint.token)
    api = Api(url=url, model="", token=token, timeout=settings.timeout)
    listed = listed_models(api)  # a token is refused here, rather than with every request
    if endpoint is None and not listed:
        raise ConfigError(f"{url}/models lists no model: it is no server of this API.")
    model = endpoint.model if endpoint else listed[0]
    api = Api(url=url, model=model, token=token, timeout=settings.timeout)
    prompts = endpoint_prompts(settings.prompt_words)
    figures, lost = [], None
    api = _warmed(api, prompts, settings, endpoint)
    for load in settings.loads:
        answers = run_load(
            load,
            prompts,
            lambda prompt: ask(api, prompt, settings.new_tokens),
            lambda: _health(url),
        )
        figures.append(load_figures(load, answers))
        if figures[-1].failed and not _health(url):
            lost = _lost(url, endpoint)
            break
    return EndpointResult(
        url=url,
        model=model,
        engine=endpoint.engine if endpoint else None,
        figures=tuple(figures),
        lost=lost,
        ignores_ends=api.ignores_ends,
        settings=settings,
        machine={"processor": processor(), "cores": os.cpu_count()},
    )
