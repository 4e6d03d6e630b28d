"""The forecast in words, for `llmgym plan`: 80 columns, plain text."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from trainers.config import Config
from trainers.config.secrets import without_secrets
from trainers.plan.batch import spelled
from trainers.plan.forecast import Forecast, Phase, size_text
from trainers.plan.lengths import Lengths
from trainers.plan.pace import HIGH, LOW, Pace

PAGE_WIDTH, LABEL_WIDTH = 80, 10


def labelled(name: str, lines: list[str], *, wrapped: bool = True) -> Iterator[str]:
    """Yield lines with a name before the first."""
    if wrapped:
        lines = [part for line in lines for part in textwrap.wrap(line, PAGE_WIDTH - LABEL_WIDTH)]
    for number, line in enumerate(lines):
        yield f"{name if number == 0 else '':<{LABEL_WIDTH}}{line}".rstrip()


def duration_in_words(seconds: float) -> str:
    """Return seconds in words, as `2 min`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else \
                f"{seconds / size:,.0f} {unit}"  # fmt: skip
    return f"{seconds:.2g} s"


Range = tuple[float, float]


def between(seconds: Range) -> str:
    """Return a range in words."""
    return " to ".join(map(duration_in_words, seconds))


def seconds_of(
    forecast: Forecast, config: Config, lengths: Lengths, pace: Pace
) -> dict[str, tuple[Range, float]]:
    """Return the range of seconds of each phase, and how often it is in the run."""
    totals: dict[str, tuple[Range, float]] = {}
    for work in forecast.work:
        low, high = (pace.seconds(work.real(config, lengths, end)) for end in (0, 1))
        before, _ = totals.get(work.name, ((0.0, 0.0), 0.0))
        totals[work.name] = (before[0] + LOW * low, before[1] + HIGH * high), work.often
    return totals


def text_lines(config: Config, lengths: Lengths | None) -> list[str]:
    """Return how long texts are taken to be for the time."""
    if lengths is None:
        return []
    low, high = lengths.response
    more = f" in {lengths.turns:.2g} turns" if lengths.turns > 1 else ""
    limits = config.generation
    return [
        f"prompts of {lengths.prompt:.0f} tokens (limit {limits.max_prompt_tokens}), responses of "
        f"{low:.0f} to {high:.0f}{more} (limit {limits.max_new_tokens}): {lengths.source}"
    ]


def memory_lines(forecast: Forecast) -> list[str]:
    """Return the table of phases."""
    titles = ("weights", "Adam", "grads", "working", "total")
    width = max([9, *(len(phase.name) + 1 for phase in forecast.memory)])
    lines = [f"{'phase':<{width}}" + "".join(f"{title:>9}" for title in titles)]
    for phase in forecast.memory:
        sizes = (
            phase.weights,
            phase.optimizer,
            phase.gradients,
            phase.working + phase.heap,
            phase.total,
        )
        cells = "".join(f"{size_text(size) if size else '-':>9}" for size in sizes)
        lines += [f"{phase.name:<{width}}{cells}", f"  {phase.detail}"]
    return lines


def rank_lines(config: Config, forecast: Forecast) -> list[str]:
    """Return how many processes there are, and how they share the models."""
    backend, ranks = config.backend, forecast.holding.ranks
    if forecast.holding.json is None and ranks == 1:
        return []
    there = f"{backend.nodes} x {backend.gpus} GPUs = {ranks}" if backend.gpus else f"{ranks}"
    how = "torch, the whole models on each"
    if forecast.holding.json is not None:
        how = f"DeepSpeed ZeRO {backend.zero.stage}, offload {backend.zero.offload}"
    return [f"{there}: {how}"]


def host_lines(config: Config, forecast: Forecast) -> list[str]:
    """Return the memory of the host, not of its GPUs."""
    if not forecast.host:
        return []
    each = ", ".join(f"{name} {size_text(size)}" for name, size in forecast.host.items() if size)
    more = ", ".join(f"{name} {size_text(size)}" for name, size in forecast.main.items() if size)
    ranks = config.backend.gpus or forecast.holding.ranks
    machine = {name: ranks * size + forecast.main.get(name, 0)
               for name, size in forecast.host.items()}  # fmt: skip
    name, most = max(machine.items(), key=lambda item: item[1])
    where = "NVMe and host memory" if config.backend.zero.nvme_path else "memory"
    return [
        f"a rank: {each}" + (f"; rank 0 more: {more}" if more else ""),
        f"about {size_text(most)} of {where} a machine at most, in {name}",
    ]


def fit_lines(peak: Phase | None, room: int | None, *, is_gpu: bool) -> list[str]:
    """Return whether the phase that takes most fits, and what to do if not."""
    if peak is None:
        return []
    where = "a GPU" if is_gpu else "a process"
    message = f"about {size_text(peak.total)} {where} at most, in {peak.name}"
    if room is None:
        return [message]
    if peak.total <= room:
        return [f"{message}: fits into the {size_text(room)} there are"]
    return [
        f"{message}: DOES NOT FIT into the {size_text(room)} there are. Try in this order:",
        "1 --backend.micro-batch-tokens 2048 --generation.batch-size 64",
        "2 --backend.gradient-checkpointing true",
        "3 --ppo.critic shared",
    ]


def time_lines(
    forecast: Forecast, config: Config, pace: Pace | None, lengths: Lengths | None
) -> list[str]:
    """Return seconds by phase, of an iteration and of the run."""
    if pace is None or lengths is None:
        return ["not known: it is the environment's own"]
    parts = seconds_of(forecast, config, lengths, pace)
    iterations = config.ppo.num_iterations
    often_each = [(seconds, 1.0) for seconds, often in parts.values() if often == iterations]
    each, total = _sum(often_each), _sum([*parts.values()])
    spent = ", ".join(
        f"{name} {between(seconds)}" for name, (seconds, _) in parts.items() if seconds[1] >= 0.01
    )
    lines = [f"about {between(total)} in all, rewards and environment not counted"]
    if iterations:
        lines[0] = f"{iterations} iterations of {between(each)}; {lines[0]}"
    gathers = any(work.usage.received for work in forecast.work)
    more = f"; weights gathered at {pace.link / 1e9:g} GB/s a rank, assumed" if gathers else ""
    return [*lines, f"once each: {spent}", f"speed {pace.source}{more}"]


def _sum(parts: Sequence[tuple[Range, float]]) -> Range:
    low, high = (sum(seconds[end] * often for seconds, often in parts) for end in (0, 1))
    return low, high


def text(
    config: Config,
    forecast: Forecast,
    *,
    pace: Pace | None,
    lengths: Lengths | None,
    memory: int | None,
    disk: int | None,
) -> str:
    """Return the page.

    Args:
        config: of the run.
        forecast: of it.
        pace: of the machine; None where the time is not known.
        lengths: of its texts; None where there are none.
        memory: bytes there are for a process; None where that is not known.
        disk: bytes that are free; None where the run is on other machines.
    """
    sizes = ", ".join(f"{role} {count / 1e6:,.2f} M" for role, count in forecast.parameters.items())
    written = sum(forecast.disk.values())
    parts = ", ".join(f"{part} {size_text(size)}" for part, size in forecast.disk.items())
    fits = ""
    if disk is not None:
        fits = f" fit into the {size_text(disk)} free" if written <= disk else (
            f" DO NOT FIT into the {size_text(disk)} free. Choose another disk with --run.dir DIR, "
            "or lower --checkpoint.keep-last"
        )  # fmt: skip
    lines = [
        *labelled("ranks", rank_lines(config, forecast)),
        *labelled("model", [f"{forecast.source} in {forecast.dtype}: {sizes}"]),
        *labelled("batch", spelled(config, forecast.batch)),
        *labelled("memory", memory_lines(forecast), wrapped=False),
        *labelled("host", host_lines(config, forecast)),
        *labelled("", fit_lines(forecast.peak, memory, is_gpu=forecast.holding.is_gpu)),
        *labelled(
            "disk", [f"{size_text(written)} in {config.run.dir}/{config.run.name}{fits}", parts]
        ),
        *labelled("texts", text_lines(config, lengths)),
        *labelled("time", time_lines(forecast, config, pace, lengths)),
        *labelled("unknown", forecast.notes),
    ]
    return "\n".join(lines)


def figures(
    config: Config, forecast: Forecast, pace: Pace | None, lengths: Lengths | None
) -> dict[str, object]:
    """Return the same as plain values, for --json."""
    seconds = {}
    if pace is not None and lengths is not None:
        parts = seconds_of(forecast, config, lengths, pace)
        seconds = {name: {"seconds": each, "times": often} for name, (each, often) in parts.items()}
    batch = forecast.batch
    return {
        "config": without_secrets(config),
        "dtype": forecast.dtype,
        "parameters": forecast.parameters,
        "batch": {
            **asdict(batch),
            "optimizer_steps": batch.steps,
            "micro_batches": batch.micro_batches,
        },
        "host": forecast.host,
        "host_of_rank_0": forecast.main,
        "memory": [{**asdict(phase), "total": phase.total} for phase in forecast.memory],
        "disk": forecast.disk,
        "texts": None if lengths is None else asdict(lengths),
        "time": seconds,
        "unknown": forecast.notes,
    }
