"""reward.png: reward, held-out score, KL and length of a run in one picture."""

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Title of a panel -> the metrics in it, each with its name in the legend.
PANELS: Mapping[str, Mapping[str, str]] = {
    "Reward": {"objective/scores": "mean of the batch"},
    "Held-out score": {"eval/score": "mean"},
    "KL to the reference (nats)": {"objective/kl": "per episode"},
    "Length": {"completions/mean_length": "tokens"},
}
BLUE, GREY = "#1f5fa8", "#5f6368"


def curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """Return the figures of metrics.jsonl: metric -> iteration -> value, the last attempt's."""
    found: dict[str, dict[int, float]] = {}
    file = run_dir / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # cut in two by a kill
            continue
        figures = {name: one for name, one in record.items() if isinstance(one, int | float)}
        if "train/global_step" in figures:
            step = int(figures["train/global_step"])
            for name, value in figures.items():
                found.setdefault(name, {})[step] = value
    return found


def _panel(axes: Axes, title: str, drawn: Mapping[str, dict[int, float]]) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    for name, curve in drawn.items():
        steps = sorted(curve)
        few = "o" if len(steps) < 30 else ""
        values = [curve[step] for step in steps]
        axes.plot(steps, values, color=BLUE, linewidth=1.6, marker=few, markersize=3, label=name)
    axes.set_xlabel("iteration", color=GREY, fontsize=9)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.grid(axis="y", color="#e4e6e8", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c4c7ca")


def draw(run_dir: Path) -> Path | None:
    """Draw reward.png from metrics.jsonl and return its path; None where nothing was logged.

    A panel is drawn where its metric was logged. The interval of the held-out score is a band.
    """
    found = curves(run_dir)
    shown = {
        title: drawn
        for title, metrics in PANELS.items()
        if (drawn := {name: found[key] for key, name in metrics.items() if key in found})
    }
    if not shown:
        return None
    rows, columns = -(-len(shown) // 2), min(len(shown), 2)
    figure = Figure(figsize=(4.5 * columns, 2.9 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for place in places[len(shown) :]:
        place.set_visible(False)
    for place, (title, drawn) in zip(places, shown.items(), strict=False):
        _panel(place, title, drawn)
        if title == "Held-out score":
            _band(place, found)
    figure.suptitle(run_dir.name, x=0.01, ha="left", fontsize=12, fontweight="bold")
    path = run_dir / "reward.png"
    figure.savefig(path, dpi=150)
    return path


def _band(axes: Axes, found: Mapping[str, dict[int, float]]) -> None:
    lows = [curve for name, curve in found.items() if name.endswith("/ci_low")]
    highs = [curve for name, curve in found.items() if name.endswith("/ci_high")]
    if len(lows) == len(highs) == 1:
        steps = sorted(lows[0].keys() & highs[0].keys())
        low, high = [lows[0][one] for one in steps], [highs[0][one] for one in steps]
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
