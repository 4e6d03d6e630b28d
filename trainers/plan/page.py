"""The forecast in words, for `llmgym plan`: 80 columns, plain text."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from trainers.config import Config
from trainers.plan.batch import spelled
from trainers.plan.forecast import Forecast, Phase, shown
from trainers.plan.pace import HIGH, LOW, Pace

WIDTH, LABEL = 80, 10


def labelled(name: str, lines: list[str], *, wrapped: bool = True) -> Iterator[str]:
    """Yield lines with a name before the first."""
    if wrapped:
        lines = [part for line in lines for part in textwrap.wrap(line, WIDTH - LABEL)]
    for number, line in enumerate(lines):
        yield f"{name if number == 0 else '':<{LABEL}}{line}".rstrip()


def duration(seconds: float) -> str:
    """Return seconds in words, as `2 min`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else \
                f"{seconds / size:,.0f} {unit}"  # fmt: skip
    return f"{seconds:.2g} s"


def between(seconds: float) -> str:
    """Return the range that a forecast of time stands for."""
    return f"{duration(LOW * seconds)} to {duration(HIGH * seconds)}"


def memory_lines(forecast: Forecast) -> list[str]:
    """Return the table of phases."""
    titles = ("weights", "Adam", "grads", "working", "total")
    lines = [f"{'phase':<9}" + "".join(f"{title:>9}" for title in titles)]
    for one in forecast.memory:
        sizes = (one.weights, one.optimizer, one.gradients, one.working + one.heap, one.total)
        cells = "".join(f"{shown(size) if size else '-':>9}" for size in sizes)
        lines += [f"{one.name:<9}{cells}", f"  {one.detail}"]
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
    """Return the memory of the host beside that of its GPUs."""
    if not forecast.host:
        return []
    each = ", ".join(f"{name} {shown(size)}" for name, size in forecast.host.items() if size)
    name, most = max(forecast.host.items(), key=lambda item: item[1])
    ranks = config.backend.gpus or forecast.holding.ranks
    where = "NVMe and host memory" if config.backend.zero.nvme_path else "memory"
    return [
        f"a rank: {each}",
        f"about {shown(ranks * most)} of {where} a machine at most, in {name}",
    ]


def verdict(peak: Phase | None, room: int | None, *, is_gpu: bool) -> list[str]:
    """Return whether the phase that takes most fits, and what to do if not."""
    if peak is None:
        return []
    where = "a GPU" if is_gpu else "a process"
    said = f"about {shown(peak.total)} {where} at most, in {peak.name}"
    if room is None:
        return [said]
    if peak.total <= room:
        return [f"{said}: fits into the {shown(room)} there are"]
    return [
        f"{said}: DOES NOT FIT into the {shown(room)} there are. Try in this order:",
        "1 --backend.micro-batch-tokens 2048 --generation.batch-size 64",
        "2 --backend.gradient-checkpointing true",
        "3 --ppo.critic shared",
    ]


def time_lines(forecast: Forecast, config: Config, pace: Pace | None) -> list[str]:
    """Return seconds by phase, of an iteration and of the run."""
    if pace is None:
        return ["not known: it is the environment's own"]
    parts = [(name, pace.seconds(usage), often) for name, usage, often in forecast.work]
    iterations = config.ppo.num_iterations
    each = sum(seconds for _, seconds, often in parts if often == iterations)
    total = sum(seconds * often for _, seconds, often in parts)
    spent = ", ".join(
        f"{name} {duration(seconds)}" for name, seconds, _ in parts if seconds >= 0.01
    )
    lines = [f"about {between(total)} in all, rewards and environment not counted"]
    if iterations:
        lines[0] = f"{iterations} iterations of {between(each)}; {lines[0]}"
    return [*lines, f"once each: {spent}", f"speed {pace.source}"]


def text(
    config: Config,
    forecast: Forecast,
    *,
    pace: Pace | None,
    memory: int | None,
    disk: int | None,
) -> str:
    """Return the page.

    Args:
        config: of the run.
        forecast: of it.
        pace: of the machine; None where the time is not known.
        memory: bytes there are for a process; None where that is not known.
        disk: bytes that are free; None where the run is on other machines.
    """
    sizes = ", ".join(f"{role} {count / 1e6:,.2f} M" for role, count in forecast.parameters.items())
    written = sum(forecast.disk.values())
    parts = ", ".join(f"{part} {shown(size)}" for part, size in forecast.disk.items())
    fits = ""
    if disk is not None:
        fits = f" fit into the {shown(disk)} free" if written <= disk else (
            f" DO NOT FIT into the {shown(disk)} free. Choose another disk with --run.dir DIR, or "
            "lower --checkpoint.keep-last"
        )  # fmt: skip
    lines = [
        *labelled("ranks", rank_lines(config, forecast)),
        *labelled("model", [f"{forecast.source} in {forecast.dtype}: {sizes}"]),
        *labelled("batch", spelled(config, forecast.batch)),
        *labelled("memory", memory_lines(forecast), wrapped=False),
        *labelled("host", host_lines(config, forecast)),
        *labelled("", verdict(forecast.peak, memory, is_gpu=forecast.holding.is_gpu)),
        *labelled("disk", [f"{shown(written)} in {config.run.dir}/{config.run.name}{fits}", parts]),
        *labelled("time", time_lines(forecast, config, pace)),
        *labelled("unknown", forecast.notes),
    ]
    return "\n".join(lines)


def figures(
    config: Mapping[str, object], forecast: Forecast, pace: Pace | None
) -> dict[str, object]:
    """Return the same as plain values, for --json."""
    seconds = {} if pace is None else {
        name: {"seconds": pace.seconds(usage), "times": often}
        for name, usage, often in forecast.work
    }  # fmt: skip
    batch = forecast.batch
    return {
        "config": config,
        "dtype": forecast.dtype,
        "parameters": forecast.parameters,
        "batch": {
            **asdict(batch),
            "optimizer_steps": batch.steps,
            "micro_batches": batch.micro_batches,
        },
        "host": forecast.host,
        "memory": [{**asdict(one), "total": one.total} for one in forecast.memory],
        "disk": forecast.disk,
        "time": seconds,
        "unknown": forecast.notes,
    }
