"""What a measurement of models does."""

import math
from dataclasses import dataclass
from typing import final

from trainers.bench.writing import Forward, NumberType
from trainers.compress.timing import check_idle
from trainers.errors import ConfigError, MeasurementError

LEAST_ROUNDS, LEAST_WARMUPS = 10, 3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What is measured, and how.

    Attributes:
        prompt_tokens: of a prompt, by the tokenizer of the first model.
        new_tokens: of every response; no end token ends one.
        rounds: how often each model answers, at least 10.
        warmups: rounds before, which do not count, at least 3.
        threads: of each process.
        concurrency: rows that are written together, for requests per second; 1 is always measured.
        dtype: of the models after the first; int8 folders stay int8.
        baselines: types in which the first model is measured, which the others are compared with.
        forward: what writes: this package's forward where it knows the family, or transformers'.
        max_load: running processes per core in the last minute, above which nothing is measured.
        seed: of the order in each round, and of the intervals.
    """

    prompt_tokens: int = 64
    new_tokens: int = 32
    rounds: int = 10
    warmups: int = 3
    threads: int = 1
    concurrency: tuple[int, ...] = (1, 4, 8)
    dtype: NumberType = "float32"
    baselines: tuple[NumberType, ...] = ("float32", "bfloat16", "int8")
    forward: Forward = "llmgym"
    max_load: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what measures too little.

        Raises:
            ConfigError: names the setting.
        """
        least = {
            "rounds": LEAST_ROUNDS,
            "warmups": LEAST_WARMUPS,
            "prompt_tokens": 1,
            "new_tokens": 2,
            "threads": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} must be at least {bound}, got {getattr(self, name)}.")
        if any(rows < 1 for rows in self.concurrency):
            raise ConfigError(f"concurrency counts rows, at least 1, got {self.concurrency}.")
        if not self.max_load > 0:
            raise ConfigError(f"max_load must be above 0, got {self.max_load}.")

    @property
    def batches(self) -> tuple[int, ...]:
        """The rows that are written together, one first, each once."""
        return tuple(sorted({1, *self.concurrency}))


def refuse_load(limit: float) -> None:
    """Refuse to measure on a busy machine, and tell how to do it all the same.

    Raises:
        MeasurementError: it is busy.
    """
    if math.isinf(limit):
        return
    try:
        check_idle(limit)
    except MeasurementError as error:
        raise MeasurementError(
            f"{error} To measure all the same: --max-load inf. With one thread times are those of "
            "the processor and ratios hold within a round, but intervals get wider."
        ) from error
