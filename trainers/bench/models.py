"""Measures models against one another: every round all of them answer, in random order."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np

from llmgym.rewards.context import longest_sequence
from trainers.bench.process import ModelProcess
from trainers.bench.settings import BenchSettings, refuse_load
from trainers.bench.texts import bench_texts
from trainers.bench.writing import NumberType, WritingTimes
from trainers.compress.timing import PairedRatio, machine_record, ratio_of_rounds
from trainers.config import Config, ModelConfig
from trainers.errors import ConfigError
from trainers.models.int8 import check_int8, is_int8
from trainers.models.loading import load_config, load_tokenizer

SHOWN_QUANTILES = (0.5, 0.95)


class Writer(Protocol):
    """What is measured: a model in a process, or in a test something else that takes time."""

    def write(self, texts: Sequence[str], new_tokens: int) -> WritingTimes:
        """Answer texts together."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """What was measured of one model.

    Attributes:
        name: as it was given.
        dtype: of its weights.
        first_token: median seconds to the first token, tokenization included.
        per_token: seconds per further token, median and 95th percentile over tokens.
        tokens_per_second: of one row, after the first token; median over rounds.
        requests_per_second: by rows written together; medians.
        disk_bytes: of its folder; None of a form that is only in memory.
        faster: by the type of the first model, how many times its tokens per second; interval.
        faster_first: the same of the time to the first token.
        facts: of its process: load_seconds, weight_bytes, peak_bytes, parameters, forward.
    """

    name: str
    dtype: NumberType
    first_token: float
    per_token: tuple[float, float]
    tokens_per_second: float
    requests_per_second: Mapping[int, float]
    disk_bytes: int | None
    faster: Mapping[str, PairedRatio]
    faster_first: Mapping[str, PairedRatio]
    facts: Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured.

    Attributes:
        models: the first one in every type, then the others.
        skipped: types of the first model that could not be measured, and why.
        settings: of the measurement.
        machine: processor, cores, threads and versions.
        seconds: that it took.
    """

    models: tuple[ModelFigures, ...]
    skipped: Mapping[str, str]
    settings: BenchSettings
    machine: Mapping[str, Any]
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"schema": 1, "kind": "models", **asdict(self)}


def folder_bytes(folder: Path) -> int | None:
    """Return the bytes of the files of a folder, or of a file; None where there is none."""
    if folder.is_file():
        return folder.stat().st_size
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sum(path.stat().st_size for path in files) or None


def rounds_of(
    writers: Sequence[Writer], texts: Sequence[str], settings: BenchSettings, batch: int
) -> list[list[WritingTimes]]:
    """Return the times [writers][rounds] of `batch` texts at once, in random order in each round.

    Every writer has the same texts in the same round.
    """
    rng = np.random.default_rng([settings.seed, batch])
    times: list[list[WritingTimes]] = [[] for _ in writers]
    for number in range(-settings.warmups, settings.rounds):
        picked = [texts[(number * batch + row) % len(texts)] for row in range(batch)]
        for at in rng.permutation(len(writers)):
            made = writers[at].write(picked, settings.new_tokens)
            if number >= 0:
                times[at].append(made)
    return times


def times_faster(
    times: Sequence[WritingTimes], base: Sequence[WritingTimes], *, seed: int, first: bool = False
) -> PairedRatio:
    """Return how many times faster than `base` tokens come, or the first one, round by round.

    Raises:
        MeasurementError: there are fewer than 10 rounds.
    """
    ours, theirs = (
        np.array([made.first if first else made.per_token for made in rounds])
        for rounds in (times, base)
    )
    return ratio_of_rounds(theirs, ours, seed=seed)


def forms_of(
    models: Sequence[str], settings: BenchSettings
) -> tuple[list[tuple[str, NumberType]], dict[str, str]]:
    """Return (model, type) of all that is measured, the first model in every type first.

    The second value: types of the first model that are not measured, and why.

    Raises:
        ConfigError: no model is named, or the first one is int8.
    """
    if not models:
        raise ConfigError("name a model to measure: llmgym bench MODEL ...")
    if is_int8(models[0]):
        raise ConfigError(
            f"{models[0]} holds int8 weights. The first model is what the others are compared "
            "with, in several types: name the dense folder first."
        )
    types: list[NumberType] = list(dict.fromkeys(settings.baselines))
    skipped: dict[str, str] = {}
    if "int8" in types:
        try:
            check_int8()
        except ConfigError as error:
            types.remove("int8")
            skipped["int8"] = str(error)
    if not types:
        raise ConfigError("the first model is measured in no type: name one of float32, bfloat16.")
    forms: list[tuple[str, NumberType]] = [(models[0], number_type) for number_type in types]
    for name in models[1:]:
        forms.append((name, "int8" if is_int8(name) else settings.dtype))
    return forms, skipped


def check_lengths(models: Sequence[str], settings: BenchSettings) -> None:
    """Refuse models that do not load, or with less context than is measured.

    Raises:
        ConfigError: names the model.
    """
    needed = settings.prompt_tokens + settings.new_tokens
    for name in models:
        context = longest_sequence(load_config(name))
        if context < needed:
            raise ConfigError(
                f"{name} takes {context} tokens, and {settings.prompt_tokens} of the prompt and "
                f"{settings.new_tokens} new ones are measured. Lower --prompt-tokens or "
                "--new-tokens."
            )


def bench_models(models: Sequence[str], settings: BenchSettings | None = None) -> BenchResult:
    """Measure models against the first one, each in a process of its own.

    Args:
        models: folders; the first one is the dense model, measured in every type.
        settings: how.

    Raises:
        ConfigError: a model does not load, or has too little context.
        MeasurementError: the machine is busy, or a process ended.
    """
    settings, began = settings or BenchSettings(), time.perf_counter()
    forms, skipped = forms_of(models, settings)
    check_lengths(models, settings)
    refuse_load(settings.max_load)
    tokenizer = load_tokenizer(Config(model=ModelConfig(path=models[0])))
    texts = bench_texts(tokenizer, settings.prompt_tokens)
    with ExitStack() as stack:
        processes = []
        for name, number_type in forms:
            processes.append(ModelProcess(name, _spec(name, number_type, models[0], settings)))
            stack.callback(processes[-1].close)
        times = {batch: rounds_of(processes, texts, settings, batch) for batch in settings.batches}
    figures = [
        _figures(at, forms, times, settings, processes[at]) for at in range(len(forms))
    ]  # fmt: skip
    return BenchResult(
        models=tuple(figures),
        skipped=skipped,
        settings=settings,
        machine={**machine_record(), "threads": settings.threads, "clock": _clock(settings)},
        seconds=time.perf_counter() - began,
    )


def _clock(settings: BenchSettings) -> str:
    return "thread" if settings.threads == 1 else "wall"


def _spec(
    name: str, number_type: NumberType, tokenizer: str, settings: BenchSettings
) -> dict[str, Any]:
    """Return what a worker is asked to load; all models read the tokens of one tokenizer."""
    return {
        "model": name,
        "dtype": number_type,
        "tokenizer": tokenizer,
        "rows": max(settings.batches),
        "tokens": settings.prompt_tokens + settings.new_tokens + 1,
        "threads": settings.threads,
        "forward": settings.forward,
    }


def _figures(
    at: int,
    forms: Sequence[tuple[str, NumberType]],
    times: Mapping[int, list[list[WritingTimes]]],
    settings: BenchSettings,
    process: ModelProcess,
) -> ModelFigures:
    own, steps = times[1][at], np.concatenate([made.steps for made in times[1][at]])
    name, number_type = forms[at]
    bases: dict[str, list[WritingTimes]] = {}
    for form, rounds in zip(forms, times[1], strict=True):
        if form[0] == forms[0][0]:
            bases.setdefault(form[1], rounds)  # the first model may be named once more
    is_as_on_disk = is_int8(name) or number_type == "float32"
    low, high = (float(value) for value in np.quantile(steps, SHOWN_QUANTILES))
    return ModelFigures(
        name=name,
        dtype=number_type,
        first_token=float(np.median([made.first for made in own])),
        per_token=(low, high),
        tokens_per_second=float(np.median([1 / made.per_token for made in own])),
        requests_per_second={
            batch: float(np.median([batch / made.total for made in rounds[at]]))
            for batch, rounds in times.items()
        },
        disk_bytes=folder_bytes(Path(name)) if is_as_on_disk else None,
        faster={kind: times_faster(own, base, seed=settings.seed) for kind, base in bases.items()},
        faster_first={
            kind: times_faster(own, base, seed=settings.seed, first=True)
            for kind, base in bases.items()
        },
        facts={**process.facts, "peak_bytes": process.peak_bytes},
    )
