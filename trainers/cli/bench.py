"""`llmgym bench`: how fast models write, and how a server answers under load."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from trainers.cli.options import parse_options
from trainers.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Measure models against the first one, or a server with --endpoint."""

    models: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL ...]")
    ] = ()
    """Runs or model folders; the first is the dense one, measured in every type."""
    prompt_tokens: int = 64
    """Tokens of each prompt."""
    new_tokens: int = 32
    """Tokens of each response; no end token ends one."""
    rounds: int = 10
    """How often each model answers; at least 10."""
    warmups: int = 3
    """Rounds before, which do not count; at least 3."""
    threads: int = 1
    """Threads of each model's process."""
    concurrency: tuple[int, ...] = (1, 4, 8)
    """Rows written together, for requests per second."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Type of the models after the first; folders of int8 weights stay int8."""
    forward: Literal["llmgym", "transformers"] = "llmgym"
    """What writes: this package's forward where it knows the family, or transformers' own."""
    max_load: float = 0.5
    """Processes per core in the last minute above which nothing is measured; inf for any."""
    seed: int = 0
    """Of the order of models, of arrivals and of intervals."""
    endpoint: str | None = None
    """Measure the server at this address instead, such as http://127.0.0.1:8000/v1."""
    clients: tuple[int, ...] = (1, 4, 16)
    """Of an endpoint: closed loads; as many clients ask one request after another."""
    rates: tuple[float, ...] = ()
    """Of an endpoint: open loads; as many requests per second, at random times."""
    requests: int = 32
    """Of an endpoint: requests of each load."""
    prompt_words: int = 48
    """Of an endpoint: words of each prompt."""
    wait_seconds: float = 600.0
    """Of an endpoint: how long its health is waited for."""
    timeout: float = 120.0
    """Of an endpoint: seconds without a byte after which a request has failed."""
    json: bool = False
    """Print one JSON object instead of a table."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print a table."""
    options: Options = parse_options(Options, argv, "bench")
    if options.endpoint is not None:
        return _endpoint(options, options.endpoint)
    if not options.models:
        raise ConfigError(
            "name what is measured: llmgym bench MODEL ..., or --endpoint http://127.0.0.1:8000/v1"
        )
    _refuse_ineffective(options, OF_SERVERS, "")
    return _models(options)


def _models(options: Options) -> int:
    from trainers.bench.models import bench_models
    from trainers.bench.settings import BenchSettings
    from trainers.bench.tables import model_lines
    from trainers.inference.targets import target_of

    settings = BenchSettings(
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
        warmups=options.warmups,
        threads=options.threads,
        concurrency=options.concurrency,
        dtype=options.dtype,
        forward=options.forward,
        max_load=options.max_load,
        seed=options.seed,
    )
    result = bench_models([target_of(word).model for word in options.models], settings)
    print(json.dumps(result.record()) if options.json else "\n".join(model_lines(result)))
    return 0


OF_SERVERS = {"clients", "rates", "requests", "prompt_words", "wait_seconds", "timeout"}
"""Options that a measurement of models does not read."""
OF_MODELS = {
    "prompt_tokens", "rounds", "threads", "concurrency", "dtype", "forward", "max_load",
}  # fmt: skip
"""Options that a measurement of a server does not read."""


def _refuse_ineffective(options: Options, names: set[str], instead: str) -> None:
    """Refuse options that would do nothing.

    Raises:
        ConfigError: names them.
    """
    plain = {field.name: field.default for field in fields(Options)}
    changed = sorted(name for name in names if getattr(options, name) != plain[name])
    if changed:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        where = "with MODEL" if instead else "with --endpoint"
        raise ConfigError(f"{words} only has an effect {where}.")


def _endpoint(options: Options, url: str) -> int:
    """Measure a server; exit code 1 where it was lost on the way."""
    from trainers.bench.endpoint import EndpointSettings, bench_endpoint
    from trainers.bench.tables import endpoint_lines

    if options.models:
        raise ConfigError("name models, or an --endpoint, not both.")
    _refuse_ineffective(options, OF_MODELS, "models")
    settings = EndpointSettings(
        clients=options.clients,
        rates=options.rates,
        requests=options.requests,
        prompt_words=options.prompt_words,
        new_tokens=options.new_tokens,
        wait_seconds=options.wait_seconds,
        timeout=options.timeout,
        warmups=options.warmups,
        seed=options.seed,
    )
    result = bench_endpoint(url, settings)
    print(json.dumps(result.record()) if options.json else "\n".join(endpoint_lines(result)))
    if result.lost is not None:
        print(f"LostServerError: {result.lost}", file=sys.stderr)
        return 1
    return 0
