"""Times of a compression: the latency table before the search, the exported model after it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from trainers.compress.latency import LatencyTable, Workload, measure_latency, model_work
from trainers.compress.timing import PairedRatio, paired_ratio
from trainers.config.compression import CompressionSettings
from trainers.errors import MeasurementError

ATTEMPTS = 3
"""A table that is refused is measured again, with twice the rounds."""
PAIRS = 40
"""Rounds of dense and smaller model against one another."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute on `count` threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def workload_of(settings: CompressionSettings) -> Workload:
    """Return what the settings say is timed."""
    return Workload(
        batch=settings.batch, prompt_tokens=settings.prompt_tokens, phase=settings.phase
    )


def checked_latency(
    config: PreTrainedConfig, settings: CompressionSettings, say: Callable[[str], None]
) -> LatencyTable:
    """Measure a latency table that predicts complete models within its error.

    Raises:
        MeasurementError: it does not, in any attempt.
    """
    rounds = settings.rounds
    for attempt in range(1, ATTEMPTS + 1):
        with threads(settings.threads):
            table = measure_latency(
                config, workload_of(settings), rounds=rounds, seed=settings.seed
            )
        try:
            table.check()
        except MeasurementError as error:
            if attempt == ATTEMPTS:
                raise
            say(f"latency: {error} Attempt {attempt + 1} of {ATTEMPTS} has twice the rounds.")
            rounds *= 2
        else:
            break
    return table


def measured_ratio(
    smaller: PreTrainedModel, dense: PreTrainedModel, settings: CompressionSettings
) -> PairedRatio:
    """Return the time of the smaller model over that of the dense one, in rounds of both."""
    workload = workload_of(settings)
    with threads(settings.threads):
        works = [model_work(model, workload) for model in (smaller, dense)]
        return paired_ratio(*works, rounds=PAIRS, seed=settings.seed)


def fit_words(tree: dict[str, Any]) -> str:
    """Return how well the table of a stage predicts, for a person."""
    fit = tree["fit"]
    return (
        f"{len(fit['rows'])} complete models are predicted within "
        f"{fit['largest_error']:.1%}, R^2 {fit['r2']:.3f}"
    )
