"""What the page of a compression shows: searchers, quality against the budget, layers that stay.

It reads compression.json, which `llmgym compress` writes; a run that is none has no such file.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from trainers.errors import ConfigError
from trainers.report.pictures import CHART_HEIGHT, CHART_WIDTH, PAGE, Ticks, inlined

COMPRESSION_FILE = "compression.json"


def compression_facts(run: Path) -> dict[str, Any] | None:
    """Return what the page shows of a compression; None where the run is none.

    Raises:
        ConfigError: its file is damaged.
    """
    file = run / COMPRESSION_FILE
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_text("utf-8"))
        return {
            "tiles": _tiles(summary),
            "searchers": _searchers(summary),
            "pareto": pareto(summary["front"], summary["searchers"], summary["budget"]),
            "heat": heat_map(summary["front"], summary["kept"]),
            "budget": ", ".join(f"{kind} {share:g}" for kind, share in summary["budget"].items()),
            "dense": summary["dense"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged: {error!r}. Make it again with the command that is in "
            f"{run / 'command.txt'}"
        ) from error


def _tiles(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    model, measured = summary["model"], summary["measured_latency"]
    tiles = [
        {"title": "Parameters", "first": model["dense_parameters"], "last": model["parameters"]},
        {
            "title": "Latency, of the dense model",
            "first": None,
            "last": measured["median"],
            "ends": (measured["low"], measured["high"]),
        },
        {"title": "KL on report, nats per token", "first": None, "last": summary["report_kl"]},
    ]
    if scores := summary["scores"]:
        dense, own = scores["dense"], scores["model"]
        ends = own["low"], own["high"]
        tiles.append(
            {
                "title": "Held-out score",
                "first": dense["mean"],
                "last": own["mean"],
                "ends": ends,
            }
        )
    return [{"ends": None, **tile} for tile in tiles]


def _searchers(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the searchers, the lowest KL on report first; those without a plan at the end."""
    rows = [{"name": name, **row} for name, row in summary["searchers"].items()]
    return sorted(rows, key=lambda row: (row["report_kl"] is None, row["report_kl"] or 0.0))


def heat_map(
    front: Sequence[Mapping[str, Any]], kept: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """Return columns and rows of the layer by budget table.

    Args:
        front: what `dp` keeps under each budget of a grid.
        kept: what the model and each searcher keep under the budget of the run.
    """
    columns = [(f"{row['share']:g}", row["kept"]) for row in front]
    columns += [(name, layers) for name, layers in kept.items() if name != "model"]
    layers = range(len(columns[0][1])) if columns else ()
    return {
        "columns": [name for name, _ in columns],
        "grid": len(front),
        "rows": [[layers_[layer] for _, layers_ in columns] for layer in layers],
    }


def pareto(
    front: Sequence[Mapping[str, Any]],
    searchers: Mapping[str, Mapping[str, Any]],
    budget: Mapping[str, float],
) -> str:
    """Return the picture of KL on selection against the budget, as inline SVG.

    Args:
        front: predicted and best KL under each budget of a grid.
        searchers: what each found under the budget of the run.
        budget: of the run.
    """
    best = [(row["share"], row["best_kl"]) for row in front if row["best_kl"]]
    predicted = [(row["share"], row["predicted_kl"]) for row in front if row["predicted_kl"] > 0]
    share = next(iter(budget.values()))
    points = [row["selection_kl"] for row in searchers.values() if row["selection_kl"]]
    if not (best or predicted or points):
        return ""
    label = "KL on selection against the budget: " + ", ".join(
        f"{kl:.3g} at {at:g}" for at, kl in best
    )
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure = Figure(figsize=(CHART_WIDTH / 72, CHART_HEIGHT / 72))
        axes = figure.add_axes((0.145, 0.1, 0.8, 0.87))
        axes.tick_params(colors=PAGE.text, labelcolor=PAGE.text, labelsize=10, length=0)
        axes.grid(axis="y", color=PAGE.grid, linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(PAGE.line)
        axes.set_yscale("log")
        for place, curve in enumerate((best, predicted)):
            if curve:
                x, y = zip(*curve, strict=True)
                axes.plot(x, y, color=PAGE.series[place], marker="o", markersize=3.5)
        axes.axvline(share, color=PAGE.line, linewidth=1.0)
        axes.scatter([share] * len(points), points, s=22, color=PAGE.series[2], zorder=3)
        axes.yaxis.set_major_formatter(Ticks())
        axes.yaxis.set_minor_formatter(NullFormatter())
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    return inlined(stream.getvalue(), label)
