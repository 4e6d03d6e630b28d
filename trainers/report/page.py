"""report.html: one page of a run, or of several side by side, that opens from disk.

Nothing in it is loaded from anywhere, and nothing in it runs: no script, no font, no picture that
is not in the file. What a model wrote is text, whatever it looks like.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from trainers.config import Config
from trainers.config.files import flat
from trainers.loggers.alarms import Alarms
from trainers.loggers.formatting import printable, rounded_number
from trainers.redaction.text_files import write
from trainers.report.compression import compression_facts
from trainers.report.panels import DRIFT, FINAL, HELD_OUT, SECTIONS, Panel
from trainers.report.pictures import phases, svg
from trainers.report.texts import (
    compare_held_out,
    extremes,
    read_samples,
    readable,
    through_time,
)
from trainers.run_dir.record import Curves, RunRecord, held_out_interval, read_run, run_summary

TRAINS_POLICY = ("ppo", "control")
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart as the page shows it: legend and words are the page's, the rest is SVG."""

    title: str
    unit: str
    healthy: str
    svg: str
    legend: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A warning, and how often and when it came."""

    name: str
    text: str
    count: int
    first: int = 0
    last: int = 0


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of a run, or the comparison of several, and return its path.

    Args:
        runs: run folders.
        out: the file; None is report.html in the run, comparison.html beside the first of several.

    Raises:
        ConfigError: a folder is no run, or is damaged. No file was touched.
        OSError: the page cannot be written; what was there before is as it was.
    """
    records = [read_run(path) for path in runs]
    if len(records) == 1:
        path = out or runs[0] / "report.html"
        return _written(path, "one.html.jinja", one_run(records[0]))
    path = out or runs[0].parent / "comparison.html"
    return _written(path, "several.html.jinja", several_runs(records))


def _written(path: Path, template: str, facts: Mapping[str, Any]) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        finalize=_clean,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": number_or_dash, "signed": signed, "when": when}
    style = (HERE / "page.css").read_text("utf-8")
    text = environment.get_template(template).render(style=style, **facts)
    write(path, text)
    return path


def _clean(value: object) -> object:
    """Return what a template shows, control characters made visible; our own markup as it is."""
    return printable(value) if isinstance(value, str) and type(value) is str else value


def number_or_dash(value: float | None) -> str:
    """Return a figure as it is printed; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    return rounded_number(value).replace("-", "\u2212")


def signed(value: float) -> str:
    """Return a figure with its sign."""
    return f"+{number_or_dash(value)}" if value > 0 else number_or_dash(value)


def when(value: object) -> str:
    """Return the time of a status as a person writes it; what cannot be read as it is."""
    try:
        return datetime.fromisoformat(str(value)).astimezone(UTC).strftime("%d %B %Y, %H:%M UTC")
    except ValueError:
        return str(value)


def _model_name(config: Config) -> str:
    """Return what a page calls the model of a run."""
    if config.is_control:
        return f"mlp {config.model.hidden_sizes}"
    return config.model.path or config.model.preset


def one_run(record: RunRecord) -> dict[str, Any]:
    """Return everything the page of one run shows."""
    rows = read_samples(record.path)
    return {
        "run": run_summary(record),
        "seed": record.config.run.seed,
        "reason": readable(record.status.get("reason", "")),
        "model": _model_name(record.config),
        "tiles": list(_tiles(record)),
        "lead": _lead(record),
        "warnings": _warnings(record),
        "sections": _sections(record),
        "drift": _drift(record.curves),
        "compression": compression_facts(record.path),
        "pairs": compare_held_out(record.path),
        "samples": through_time(rows),
        "extremes": extremes(rows),
        "settings": _changed(record.config),
        "config_text": _text(record.path / "config.yaml"),
        "command": _text(record.path / "command.txt"),
        "environment": _text(record.path / "environment.txt"),
    }


def several_runs(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return everything the comparison of runs shows."""
    settings = [flat(record.config) for record in records]
    keys = dict.fromkeys(key for settings_of_run in settings for key in settings_of_run)
    differing = {
        key: [json.dumps(settings_of_run.get(key)) for settings_of_run in settings]
        for key in keys
        if len({json.dumps(settings_of_run.get(key)) for settings_of_run in settings}) > 1
        and key not in ("run.name", "run.date")
    }
    names = [record.name for record in records]
    return {
        "names": names,
        "runs": [run_summary(record) for record in records],
        "sections": [
            {"question": section.question, "how": section.how, "charts": charts}
            for section in SECTIONS
            if (
                charts := [chart for panel in section.panels for chart in _overlaid(panel, records)]
            )
        ],
        "settings": differing,
        "final": final_figures(records),
    }


def final_figures(records: Sequence[RunRecord]) -> dict[str, list[float | None]]:
    """Return title -> the last value of each run, of the figures that any of them logged."""
    figures = {
        title: [record.last(metric) for record in records] for metric, title in FINAL.items()
    }
    return {title: row for title, row in figures.items() if any(x is not None for x in row)}


def _sections(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {"question": section.question, "how": section.how, "charts": charts}
        for section in SECTIONS
        if (charts := [_chart(panel, record) for panel in section.panels if phases(panel, record)])
    ]


def _chart(panel: Panel, record: RunRecord) -> Chart:
    drawn = phases(panel, record)
    return Chart(
        title=panel.title,
        unit=panel.unit,
        healthy=panel.healthy,
        svg=svg(panel, drawn, banded=[record.curves] if panel is HELD_OUT else ()),
        legend=tuple(drawn) if len(drawn) > 1 and panel.kind != "scatter" else (),
    )


def _overlaid(panel: Panel, records: Sequence[RunRecord]) -> Iterator[Chart]:
    """Yield a chart for each metric of a panel, a curve for each run that logged it."""
    if panel.kind != "lines":
        return
    curves_of = [panel.drawn_curves(record.curves) for record in records]
    metrics = dict.fromkeys(name for curves in curves_of for name in curves)
    for name in metrics:
        places = [place for place, curves in enumerate(curves_of) if name in curves]
        drawn = {f"{place + 1} {records[place].name}": curves_of[place][name] for place in places}
        intervals = [records[place].curves for place in places] if panel is HELD_OUT else ()
        yield Chart(
            title=panel.title if len(metrics) == 1 else f"{panel.title}: {name}",
            unit=panel.unit,
            healthy=panel.healthy,
            svg=svg(panel, drawn, banded=intervals, places=places),
            legend=(),
        )


def _tiles(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield the figures at the top: title, first, last, interval of the last."""
    shown = {
        "eval/score": "Held-out score",
        "objective/scores": "Reward",
        "objective/kl": "KL, nats",
        "completions/mean_length": "Length, tokens",
    }
    before_ppo = {
        "sft/loss": "Loss",
        "sft/holdout_loss": "Loss, held out",
        "reward_model/loss": "Loss",
        "reward_model/accuracy": "Judged right",
    }
    for metric, title in (shown if record.kind in TRAINS_POLICY else before_ppo).items():
        if curve := record.curves.get(metric):
            first, last = min(curve), max(curve)
            ends = held_out_interval(record.curves, last) if metric == "eval/score" else None
            yield {
                "title": title,
                "first": curve[first] if first != last else None,
                "last": curve[last],
                "ends": ends,
            }


def _lead(record: RunRecord) -> str:
    """Return in a sentence what became of the held-out score, no more than its intervals carry."""
    scores = record.curves.get("eval/score", {})
    if len(scores) < 2:
        if record.kind in TRAINS_POLICY:
            return (
                "No held-out score was measured twice, so nothing here shows that it generalizes."
            )
        return ""
    first, last = min(scores), max(scores)
    before, after = held_out_interval(record.curves, first), held_out_interval(record.curves, last)
    course = f"from {number_or_dash(scores[first])} to {number_or_dash(scores[last])}"
    if before is None or after is None:
        return f"The held-out score went {course}."
    if after[0] > before[1]:
        return f"The held-out score rose {course}, and its 95 % intervals do not touch."
    if after[1] < before[0]:
        return f"The held-out score fell {course}, and its 95 % intervals do not touch."
    return f"The held-out score went {course}; its 95 % intervals overlap, so it may be chance."


def _warnings(record: RunRecord) -> list[Warned]:
    """Return what the console warned of, counted over the whole run, the most frequent first."""
    steps = sorted(record.curves.get("objective/scores", record.curves.get("train/episodes", {})))
    watch, warned = Alarms(record.config), dict[str, Warned]()
    for step in steps:
        before = dict(watch.counts)
        texts = iter(
            watch.take({k: curve[step] for k, curve in record.curves.items() if step in curve})
        )
        for name, count in watch.counts.items():
            if name not in before:
                warned[name] = Warned(name=name, text=next(texts), count=1, first=step, last=step)
            elif count > before[name]:
                warned[name] = replace(warned[name], count=count, last=step)
    ordered = sorted(warned.values(), key=lambda warning: -warning.count)
    if record.unreadable:
        text = (
            "lines of metrics.jsonl that are no records were left out. A kill leaves one; more "
            "than one for each start is damage."
        )
        ordered.append(Warned(name="unreadable lines", text=text, count=record.unreadable))
    return ordered


def _drift(curves: Curves) -> list[tuple[str, float, float]]:
    """Return (what, mean over the first tenth, mean over the last) of a run of some length."""
    rows = []
    for metric, title in DRIFT.items():
        values = [value for _, value in sorted(curves.get(metric, {}).items())]
        if len(values) >= 2:
            tenth = max(len(values) // 10, 1)
            rows.append((title, sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth))
    return rows


def _changed(config: Config) -> list[tuple[str, str, str]]:
    """Return (setting, default, value) of every setting that is not the default."""
    ours, usual = flat(config), flat(Config())
    return [
        (key, json.dumps(usual.get(key)), json.dumps(value))
        for key, value in ours.items()
        if value != usual.get(key)
    ]


def _text(file: Path) -> str:
    return file.read_text("utf-8", errors="replace") if file.is_file() else ""
