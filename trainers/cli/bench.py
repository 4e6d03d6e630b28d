"""`llmgym bench`: how fast models write, and how a server answers under load."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
    json: bool = False
    """Print one JSON object instead of a table."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print a table."""
    options: Options = parse_options(Options, argv, "bench")
    if not options.models:
        raise ConfigError("name what is measured: llmgym bench MODEL ...")
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
