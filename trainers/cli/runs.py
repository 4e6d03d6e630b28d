"""`llmgym runs list|diff`: the runs of a folder, and what is between two of them. No torch."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from trainers.cli.options import parse_options
from trainers.config.files import flat
from trainers.errors import ConfigError
from trainers.loggers.formatting import rounded_number
from trainers.report.panels import FINAL
from trainers.run_dir.record import RunRecord, read_run, run_summary

Key = Literal["when", "name", "state", "kind", "reward", "score", "size"]
FIGURES = {"when": "updated", "size": "bytes"}
NONE = "-"
RUN_COLUMNS: tuple[str, ...] = (
    "name",
    "state",
    "kind",
    "env",
    "iteration",
    "reward",
    "score",
    "size",
    "when",
)
SPARE = ("size", "kind", "reward", "env")
"""Columns that a narrow terminal does without; --json has all."""
TABLE_WIDTH = 100
"""Of what is no terminal."""


@dataclass(frozen=True)
class ListRuns:
    """List the runs of a folder, one a line."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """The folder of the run folders."""
    sort: Key = "when"
    """The column to sort by: texts from a to z, figures and times from the largest."""
    json: bool = False
    """Print a JSON list with an object a run."""


@dataclass(frozen=True)
class Diff:
    """Show the settings in which two runs differ, and where each of them ended."""

    a: tyro.conf.Positional[Path]
    """A run folder."""
    b: tyro.conf.Positional[Path]
    """Another one."""
    json: bool = False
    """Print a JSON object."""


Command = (
    Annotated[ListRuns, tyro.conf.subcommand("list")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
)


def listed(folder: Path) -> list[dict[str, Any]]:
    """Return the summary of each run in a folder; of a damaged one its name and the reason.

    Raises:
        ConfigError: there is no such folder, or no run in it.
    """
    paths = sorted(file.parent for file in folder.glob("*/config.yaml"))
    if not paths:
        raise ConfigError(f"there is no run in {folder}/. Start one: llmgym train quickstart")
    rows = []
    for path in paths:
        try:
            rows.append(run_summary(read_run(path)))
        except ConfigError as error:
            rows.append({"name": path.name, "path": str(path), "state": "damaged",
                         "reason": str(error).partition("\n")[0]})  # fmt: skip
    return rows


def ordered(rows: Sequence[Mapping[str, Any]], sort: Key) -> list[Mapping[str, Any]]:
    """Return rows by a column; what lacks it comes last."""
    name = FIGURES.get(sort, sort)
    there = [row for row in rows if row.get(name) is not None]
    lacking = [row for row in rows if row.get(name) is None]
    is_text = sort in ("name", "state", "kind")
    return sorted(there, key=lambda row: row[name], reverse=not is_text) + lacking


def table(rows: Sequence[Mapping[str, Any]], now: datetime, width: int = TABLE_WIDTH) -> list[str]:
    """Return a header and a line a run; damaged runs say why below the table.

    Columns of `SPARE` are left out, one after another, until the rest fits into `width`.
    """
    cells = [dict(zip(RUN_COLUMNS, _cells(row, now), strict=True)) for row in rows]
    why = [f"{row['name']}: {row['reason']}" for row in rows if "reason" in row]
    head, lines = [*RUN_COLUMNS], [""]
    for left_out in ("", *SPARE):
        head = [name for name in head if name != left_out]
        lines = columns([head, *([row[name] for name in head] for row in cells)])
        if max(map(len, lines)) <= width:
            break
    return [*lines, *why]


def _cells(row: Mapping[str, Any], now: datetime) -> list[str]:
    score = known(row.get("score"))
    if row.get("ci_low") is not None:
        score += f" [{rounded_number(row['ci_low'])}, {rounded_number(row['ci_high'])}]"
    done = row.get("iteration")
    return [
        row["name"],
        row["state"],
        row.get("kind") or NONE,
        (row.get("env") or NONE).removeprefix("llmgym/"),
        NONE if done is None else f"{done}/{row.get('num_iterations')}",
        known(row.get("reward")),
        score,
        size(row["bytes"]) if "bytes" in row else NONE,
        age(row.get("updated"), now),
    ]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in lines]


def known(value: float | None) -> str:
    """Return a figure, a dash where there is none."""
    return NONE if value is None else rounded_number(value)


def size(number: float) -> str:
    """Return bytes as 78 MB."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def age(updated: object, now: datetime) -> str:
    """Return how long ago a time was: 5 min, 3 h or 2 d ago."""
    try:
        seconds = (now - datetime.fromisoformat(str(updated))).total_seconds()
    except (ValueError, TypeError):
        return NONE
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "now"


def compare_runs(a: RunRecord, b: RunRecord) -> dict[str, Any]:
    """Return settings that differ, and last figures, of two runs: name -> [of a, of b]."""
    ours, theirs = flat(a.config), flat(b.config)
    settings = {
        key: [ours.get(key), theirs.get(key)]
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    }
    figures = {metric: [a.last(metric), b.last(metric)] for metric in FINAL}
    logged = {metric: pair for metric, pair in figures.items() if pair != [None, None]}
    return {"runs": [str(a.path), str(b.path)], "settings": settings, "figures": logged}


def difference_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Return a difference as lines."""
    settings = [[key, *map(json.dumps, pair)] for key, pair in comparison["settings"].items()]
    figures = [[key, *map(known, pair)] for key, pair in comparison["figures"].items()]
    lines = columns([["setting", *comparison["runs"]], *settings])
    if not settings:
        lines = ["The settings are the same."]
    return [*lines, "", *columns([["last value", *comparison["runs"]], *figures])]


def main(argv: Sequence[str]) -> int:
    """Run list or diff."""
    command: Command = parse_options(Command, argv, "runs")
    if isinstance(command, ListRuns):
        rows = ordered(listed(command.folder), command.sort)
        width = shutil.get_terminal_size((TABLE_WIDTH, 0)).columns
        shown = table(rows, datetime.now(UTC), width)
        print(json.dumps(rows, indent=1) if command.json else _lines(shown))
    else:
        comparison = compare_runs(read_run(command.a), read_run(command.b))
        print(
            json.dumps(comparison, indent=1)
            if command.json
            else _lines(difference_lines(comparison))
        )
    return 0


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines)
