"""Measurements as lines of text."""

from collections.abc import Sequence

from llmgym.plural import counted
from trainers.bench.endpoint import EndpointResult, LoadFigures
from trainers.bench.models import BenchResult, ModelFigures
from trainers.compress.timing import PairedRatio

MIB, MB = 2**20, 10**6


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, the first column to the left and others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def shown_ratio(ratio: PairedRatio) -> str:
    """Return a ratio and its interval: 2.31 [2.25, 2.40]."""
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def model_lines(result: BenchResult) -> list[str]:
    """Return the table of a measurement, and how it was made."""
    settings, machine = result.settings, result.machine
    batches = list(result.models[0].requests_per_second)
    head = ["model", "first token ms", "per token ms p50", "p95", "tokens/s"]
    head += [f"requests/s x{batch}" for batch in batches]
    head += ["peak MiB", "disk MB", "load s"]
    ratios = ["tokens/s, times that of", *result.models[0].faster]
    lines = aligned([head, *(_cells(figures, batches) for figures in result.models)])
    lines += ["", *aligned([ratios, *map(_ratio_cells, result.models)])]
    lines += [f"not measured: {kind}: {reason}" for kind, reason in result.skipped.items()]
    clock = "processor time" if machine["clock"] == "thread" else "wall clock"
    return [
        *lines,
        "",
        f"{settings.prompt_tokens} tokens of prompt, {settings.new_tokens} new ones, "
        f"{settings.rounds} rounds in random order after {settings.warmups}, {clock}, "
        f"{counted(settings.threads, 'thread')}, {result.seconds:.0f} s; ratios within rounds, "
        "median with 95 % interval",
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, "
        f"transformers {machine['transformers']}; forward: "
        f"{', '.join(dict.fromkeys(str(model.facts['forward']) for model in result.models))}",
    ]


def _label(figures: ModelFigures) -> str:
    return f"{figures.name} ({figures.dtype})"


def _cells(figures: ModelFigures, batches: Sequence[int]) -> list[str]:
    median, high = figures.per_token
    disk = "-" if figures.disk_bytes is None else f"{figures.disk_bytes / MB:.1f}"
    return [
        _label(figures),
        f"{1000 * figures.first_token:.1f}",
        f"{1000 * median:.2f}",
        f"{1000 * high:.2f}",
        f"{figures.tokens_per_second:.1f}",
        *(f"{figures.requests_per_second[batch]:.2f}" for batch in batches),
        f"{figures.facts['peak_bytes'] / MIB:.0f}",
        disk,
        f"{figures.facts['load_seconds']:.2f}",
    ]


def _ratio_cells(figures: ModelFigures) -> list[str]:
    return [_label(figures), *map(shown_ratio, figures.faster.values())]


def endpoint_lines(result: EndpointResult) -> list[str]:
    """Return the table of a measured server, and how it was measured."""
    settings = result.settings
    head = ["load", "failed", "requests/s", "tokens/s", "first token ms p50", "p95"]
    head += ["between ms p50", "p95", "complete ms p50", "p95", "p99"]
    lines = aligned([head, *map(_load_cells, result.figures)])
    lines += [
        f"failed ({figures.load.label}): {error}"
        for figures in result.figures
        for error in figures.errors
    ]
    engine = f"{result.engine}, " if result.engine else ""
    return [
        *lines,
        "",
        f"{engine}{result.model} at {result.url}: {settings.requests} requests per load or one per "
        f"client, prompts of {settings.prompt_words} words, "
        f"{'' if result.ignores_ends else 'at most '}{settings.new_tokens} new tokens, "
        f"after {settings.warmups} that do not count",
        f"{result.machine['processor']}, {result.machine['cores']} cores",
    ]


def _load_cells(figures: LoadFigures) -> list[str]:
    def ms(values: dict[int, float], *at: int) -> list[str]:
        return [f"{1000 * values[percent]:.0f}" if values else "-" for percent in at]

    return [
        figures.load.label,
        f"{figures.failed} of {figures.sent}",
        f"{figures.requests_per_second:.2f}",
        f"{figures.tokens_per_second:.1f}",
        *ms(figures.first_token, 50, 95),
        *ms(figures.between_tokens, 50, 95),
        *ms(figures.complete, 50, 95, 99),
    ]
