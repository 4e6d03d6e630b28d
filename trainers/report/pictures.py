"""Charts by matplotlib: reward.png of a run, and inline SVG in colors that the page decides."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullLocator

from trainers.loggers.formatting import printable
from trainers.report.panels import HELD_OUT, OVERVIEW, TOTAL, Panel
from trainers.run_dir.record import Curves, RunRecord, curves, held_out_interval, lines

Curve = Mapping[int, float]

MAX_POINTS = 1000  # of a curve; of more, neighbors are averaged
SMOOTHED = 60  # from this many points on, a running mean is drawn over a pale curve
STEADY = 0.02  # of its size; smaller changes are noise, and no label has room for their digits
CHART_WIDTH, CHART_HEIGHT = 360, 208  # of a chart in the page, in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """Colors as matplotlib wants them."""

    series: Sequence[str]
    text: str
    line: str
    grid: str


PAPER = Palette(
    series=("#2c5f8d", "#b4552d", "#4b7f52", "#8a5a94", "#a88420", "#3c8f96"),
    text="#5f6368",
    line="#c4c7ca",
    grid="#e4e6e8",
)
# In the page a color is a variable: light and dark decide. Each stands here for one of them.
NAMES = (*(f"series-{i}" for i in range(8)), "muted", "edge", "grid")
STAND_INS = {f"#{place:06x}": f"var(--{name})" for place, name in enumerate(NAMES, start=1)}
TEXT_COLOR, LINE_COLOR, GRID_COLOR = tuple(STAND_INS)[8:]
PAGE = Palette(series=tuple(STAND_INS)[:8], text=TEXT_COLOR, line=LINE_COLOR, grid=GRID_COLOR)


def draw(run_dir: Path) -> Path | None:
    """Draw reward.png from metrics.jsonl and return its path; None where PPO logged nothing.

    A panel is drawn where its metric was logged. The interval of the held-out score is a band.
    """
    logged = curves(lines(run_dir / "metrics.jsonl"))
    shown = [(panel, drawn) for panel in OVERVIEW if (drawn := panel.drawn_curves(logged))]
    if not shown:
        return None
    rows, columns = -(-len(shown) // 2), min(len(shown), 2)
    figure = Figure(figsize=(4.5 * columns, 2.9 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for place in places[len(shown) :]:
        place.set_visible(False)
    for place, (panel, drawn) in zip(places, shown, strict=False):
        place.set_title(panel.title, loc="left", fontsize=11)
        place.set_xlabel("iteration", color=PAPER.text, fontsize=9)
        plot(place, panel, drawn, PAPER)
        if panel is HELD_OUT:
            band(place, logged, PAPER.series[0])
    figure.suptitle(run_dir.name, x=0.01, ha="left", fontsize=12, fontweight="bold")
    path = run_dir / "reward.png"
    draft = path.with_name(".reward.png.draft")
    figure.savefig(draft, dpi=150, format="png")
    draft.replace(path)
    return path


def plot(axes: Axes, panel: Panel, drawn: Mapping[str, Curve], palette: Palette) -> None:
    """Draw the curves of a panel, in the order of the palette."""
    axes.tick_params(colors=palette.text, labelcolor=palette.text, labelsize=10, length=0)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.line)
    if panel.kind == "scatter":
        _scatter(axes, drawn, palette)
        return
    values = [value for curve in drawn.values() for value in curve.values()]
    is_log = panel.is_log and min(values) > 0 and max(values) > 20 * min(values)
    if panel.kind == "stack":
        _stack(axes, drawn, palette)
    else:
        for place, curve in enumerate(drawn.values()):
            color = palette.series[place % len(palette.series)]
            line(axes, curve, color, is_log=is_log, is_noisy=panel.is_noisy)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if is_log:
        _log_scale(axes, is_wide=max(values) > 200 * min(values))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(Ticks())
        _span(axes, panel, min(values), max(values))


class Ticks(Formatter):
    """Labels that each say their value whole: matplotlib would put 1e-6 outside of the picture."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        """Return the label of one tick."""
        return tick_label(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return labels with as many decimals as the finest of them needs."""
        labels = [tick_label(value) for value in values]
        if any("e" in label for label in labels):
            return labels
        decimals = max((len(label.partition(".")[2]) for label in labels), default=0)
        return [f"{float(label):.{decimals}f}" for label in labels]


def tick_label(value: float) -> str:
    """Return a number as short as it can be: 0.25, 1200, 6e-6."""
    mantissa, _, power = f"{value + 0.0:.5e}".partition("e")
    if -4 <= int(power) < 6 or value == 0:
        return f"{float(f'{value:.6g}') + 0.0:.10f}".rstrip("0").rstrip(".")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


def _log_scale(axes: Axes, *, is_wide: bool) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 3.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(Ticks())


def _span(axes: Axes, panel: Panel, low: float, high: float) -> None:
    """Show no less than the panel wants, and a steady value as a flat line."""
    least = STEADY * max(abs(low), abs(high))
    if panel.spans is None and high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    if panel.spans is not None:
        least, most = panel.spans
        spare = 0.04 * (max(most, high) - least)
        axes.set_ylim(min(least, low) - spare * (low < least), max(most, high) + spare)


def line(
    axes: Axes, curve: Curve, color: str, *, is_log: bool = False, is_noisy: bool = True
) -> None:
    """Draw a curve; a long and noisy one pale, with its running mean over it.

    On a logarithmic axis the mean is geometric: one spike would lift the other for its whole reach.
    """
    steps, values = thinned(curve)
    is_long = is_noisy and len(steps) >= SMOOTHED
    shape = {"marker": "o" if len(steps) < 30 else "", "markersize": 3.5, "clip_on": False}
    axes.plot(steps, values, color=color, linewidth=1.0 if is_long else 1.7,
              alpha=0.3 if is_long else 1.0, **shape)  # fmt: skip
    if is_long:
        reach = len(steps) // 20
        mean = running_mean(np.log(values) if is_log else values, reach)
        axes.plot(
            steps, np.exp(mean) if is_log else mean, color=color, linewidth=1.9, clip_on=False
        )


def band(axes: Axes, logged: Curves, color: str) -> None:
    """Shade the interval of the held-out score, where there is one environment."""
    ends = {
        step: interval
        for step in logged["eval/score"]
        if (interval := held_out_interval(logged, step))
    }
    if ends:
        steps = sorted(ends)
        low, high = zip(*(ends[step] for step in steps), strict=True)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def thinned(curve: Curve, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) in order, neighbors averaged so that at most `most` are left."""
    steps = np.array(sorted(curve), np.float64)
    values = np.array([curve[int(step)] for step in steps], np.float64)
    each = -(-len(steps) // most)
    if each > 1:
        starts = np.arange(0, len(steps), each)
        sizes = np.diff(np.append(starts, len(steps)))
        steps, values = (np.add.reduceat(series, starts) / sizes for series in (steps, values))
    return steps, values


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Return the mean of each value and `reach` neighbors on either side, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _scatter(axes: Axes, drawn: Mapping[str, Curve], palette: Palette) -> None:
    (x_name, x), (y_name, y) = drawn.items()
    steps = sorted(x.keys() & y.keys())
    steps = steps[:: -(-len(steps) // 300) or 1]
    colors = to_rgba_array([palette.series[0]] * len(steps), np.linspace(0.15, 1.0, len(steps)))
    axes.scatter([x[s] for s in steps], [y[s] for s in steps], s=14, color=colors, linewidths=0)
    style = {"color": palette.text, "fontsize": 10, "transform": axes.transAxes}
    axes.text(0.99, 0.03, x_name, ha="right", va="bottom", **style)
    axes.text(0.01, 0.99, y_name, ha="left", va="top", **style)
    for axis, most in ((axes.xaxis, 5), (axes.yaxis, 4)):
        axis.set_major_locator(MaxNLocator(most))
        axis.set_major_formatter(Ticks())


def _stack(axes: Axes, drawn: Mapping[str, Curve], palette: Palette) -> None:
    steps = sorted(set().union(*drawn.values()))
    layers = [
        thinned({step: curve.get(step, 0.0) for step in steps}, 200) for curve in drawn.values()
    ]
    chosen = [palette.series[place % len(palette.series)] for place in range(len(layers))]
    values = [values for _, values in layers]
    axes.stackplot(layers[0][0], values, colors=chosen, alpha=0.8, linewidth=0)
    axes.margins(x=0)


def phases(panel: Panel, record: RunRecord) -> dict[str, Curve]:
    """Return the curves of a panel, of a stack the six largest: what is less cannot be seen."""
    drawn = panel.drawn_curves(record.curves)
    if panel.kind != "stack":
        return drawn
    drawn.pop(TOTAL.partition("/")[2], None)
    by_size = sorted(drawn, key=lambda name: -sum(drawn[name].values()))
    return {name: drawn[name] for name in by_size[:6]}


def svg(
    panel: Panel,
    drawn: Mapping[str, Curve],
    *,
    banded: Sequence[Curves] = (),
    places: Sequence[int] | None = None,
) -> str:
    """Return a chart as inline SVG without a size, its colors variables of the page.

    Args:
        panel: says how.
        drawn: name -> curve.
        banded: for each curve, the figures with the interval that is shaded; none by itself.
        places: of each curve's color in the palette; None takes them in order.
    """
    drawn = {
        printable(name): curve for name, curve in drawn.items()
    }  # a part's name is a stranger's
    label = (
        f"{panel.title}: {', '.join(f'{name} {course(curve)}' for name, curve in drawn.items())}"
    )
    chosen = PAGE if places is None else replace(PAGE, series=[PAGE.series[i % 8] for i in places])
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure = Figure(figsize=(CHART_WIDTH / 72, CHART_HEIGHT / 72))
        # Alike, so that charts line up; with room for half of the last label of x.
        axes = figure.add_axes((0.145, 0.1, 0.8, 0.87))
        plot(axes, panel, drawn, chosen)
        for logged, color in zip(banded, chosen.series, strict=False):
            band(axes, logged, color)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    return inlined(stream.getvalue(), label)


def course(curve: Curve) -> str:
    """Return in words where a curve began and where it ended."""
    first, last = min(curve), max(curve)
    return (
        f"{curve[first]:.3g}" if first == last else f"from {curve[first]:.3g} to {curve[last]:.3g}"
    )


def inlined(text: str, label: str) -> str:
    """Return the SVG without prologue, names of groups, and digits that nobody sees.

    Args:
        text: as matplotlib wrote it in the colors of `PAGE`.
        label: what a reader hears who does not see it.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'="[^"]*"', lambda match: re.sub(r"(\d\.\d\d)\d+", r"\1", match[0]), text)
    for stand_in, variable in STAND_INS.items():
        text = text.replace(stand_in, variable)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    opening = f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{escaped}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
