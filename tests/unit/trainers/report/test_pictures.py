"""Pictures: reward.png of what was logged, and SVG that a page can hold as it is."""

import json
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainers.report import pictures
from trainers.report.panels import HELD_OUT, REWARD, SECTIONS, Panel
from trainers.report.pictures import draw, running_mean, svg, thinned, tick_label


def write(folder, *records, tail=""):
    text = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")


def test_a_picture_is_drawn_of_what_was_logged(tmp_path):
    scores = {"eval/score": 0.5, "eval/a/ci_low": 0.4, "eval/a/ci_high": 0.6}
    write(
        tmp_path,
        {"train/global_step": 0, **scores},
        {"train/global_step": 1, "objective/scores": 0.1, "objective/kl": "nan"},
    )
    assert draw(tmp_path) == tmp_path / "reward.png"
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_logged_draws_nothing(tmp_path):
    assert draw(tmp_path) is None
    write(tmp_path, {"sft/step": 1, "sft/loss": 2.0})
    assert draw(tmp_path) is None
    assert not (tmp_path / "reward.png").exists()


def test_a_family_gives_a_curve_for_each_of_its_metrics():
    panel = Panel(title="Parts", metrics={"rewards/{part}/mean": "", "objective/scores": "sum"})
    curves = {
        "rewards/exact/mean": {1: 0.5},
        "rewards/brief/mean": {1: -1.0},
        "rewards/exact/std": {1: 9.0},
        "objective/scores": {1: -0.5},
    }
    assert panel.drawn_curves(curves) == {"brief": {1: -1.0}, "exact": {1: 0.5}, "sum": {1: -0.5}}


def test_a_scatter_without_one_of_its_axes_is_left_out():
    panel = Panel(title="x", metrics={"objective/kl": "x", "objective/scores": "y"}, kind="scatter")
    assert panel.drawn_curves({"objective/scores": {1: 1.0}}) == {}


def test_no_metric_is_in_two_panels_of_a_section():
    for section in SECTIONS:
        shown = [key for one in section.panels if one.kind == "lines" for key in one.metrics]
        assert len(shown) == len(set(shown)), section.question


def test_long_curves_are_thinned_by_means_that_keep_the_mean():
    curve = {step: float(step % 7) for step in range(2345)}
    steps, values = thinned(curve, 100)
    assert len(steps) <= 100
    sizes = np.full(len(steps), 24)
    sizes[-1] = 2345 - 24 * (len(steps) - 1)
    assert np.average(values, weights=sizes) == pytest.approx(np.mean([*curve.values()]))
    short = {3: 1.0, 1: 5.0}
    assert [one.tolist() for one in thinned(short)] == [[1.0, 3.0], [5.0, 1.0]]


def test_the_running_mean_is_the_mean_of_the_neighbors():
    values = np.random.default_rng(0).normal(size=50)
    expected = [values[max(0, i - 4) : i + 5].mean() for i in range(50)]
    assert running_mean(values, 4) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(
    "curve", [{1: 0.0}, {1: 2.0, 2: 2.0}, {i: 10.0**-i for i in range(1, 200)}, {5: -1e30, 9: 1e30}]
)
def test_any_curve_becomes_svg_whose_colors_the_page_decides(curve):
    for panel in (REWARD, Panel(title='a "<b>"', metrics={}, is_log=True, spans=(0, 1))):
        text = svg(panel, {"one": curve})
        assert text.startswith('<svg viewBox="0 0 ')
        assert "var(--series-0)" in text
        assert not re.search(r"#00000[0-9a-f]", text)
        assert "http" not in text.replace("http://www.w3.org", "")
        assert "<b>" not in text


def test_ticks_keep_their_digits():
    text = svg(Panel(title="x", metrics={}), {"one": {1: 0.0001, 2: 0.0004}})
    assert "0.0004" in re.findall(r">([^<>]+)</text>", text)


def test_the_interval_of_the_held_out_score_is_a_band():
    curves = {"eval/score": {0: 0.5, 2: 0.7}}
    ends = {"eval/a/ci_low": {0: 0.4, 2: 0.6}, "eval/a/ci_high": {0: 0.6, 2: 0.8}}
    plain = svg(HELD_OUT, {"mean": curves["eval/score"]})
    banded = svg(HELD_OUT, {"mean": curves["eval/score"]}, banded=[curves | ends])
    assert banded.count("<path") == plain.count("<path") + 1
    assert svg(HELD_OUT, {"mean": curves["eval/score"]}, banded=[curves]) == plain


EXPLAINED = Panel(title="Explained variance", metrics={})
STEPS = (1, 500, 123_456)


@pytest.mark.parametrize(
    "values",
    [(1e-6, 6e-6, 3e-6), (0.0, 2.4e-4, 1e-5), (-3e-9, 1e-9, 0.0), (0.99, 1.0, 0.97),
     (5e7, 9e7, 1e6), (0.973512, 0.973513, 0.9735125), (12.0, 1500.0, 80.0), (-0.24, 0.0, 0.08),
     (1e-3, 1e-3, 1e-3), (3e-4, 3e-4, 3e-4)],
)  # fmt: skip
@pytest.mark.parametrize("is_log", [False, True])
def test_each_label_of_an_axis_says_its_whole_value_inside_the_picture(monkeypatch, values, is_log):
    figures = []
    monkeypatch.setattr(
        pictures, "Figure", lambda **size: figures.append(Figure(**size)) or figures[0]
    )
    panel = Panel(title="x", metrics={}, is_log=is_log)
    svg(panel, {"one": dict(zip(STEPS, values, strict=True))})
    (figure,) = figures
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert axes.yaxis.get_offset_text().get_text() == ""
    shown = axes.get_ylim()
    labels = [
        one for axis in (axes.xaxis, axes.yaxis) for one in axis.get_ticklabels() if one.get_text()
    ]
    box = figure.bbox
    for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        if shown[0] <= place <= shown[1]:
            assert float(label.get_text()) == pytest.approx(place, rel=1e-5, abs=1e-15)
    for label in labels:
        extent = label.get_window_extent()
        x, y = label.get_position()
        inside = (axes.get_xlim()[0] <= x <= axes.get_xlim()[1]) or x == 0
        if inside and shown[0] <= y <= shown[1]:
            assert box.x0 <= extent.x0, label.get_text()
            assert extent.x1 <= box.x1, label.get_text()


@pytest.mark.parametrize(
    ("value", "label"),
    [(6e-6, "6e-6"), (-1.25e-7, "-1.25e-7"), (0.0, "0"), (-0.0, "0"), (0.25, "0.25"),
     (1200.0, "1200"), (2e6, "2e6"), (0.0001, "0.0001")],
)  # fmt: skip
def test_a_tick_says_its_number_as_short_as_it_can_be(value, label):
    assert tick_label(value) == label


def test_names_of_parts_bring_no_control_character_into_a_chart():
    text = svg(EXPLAINED, {"a\x1b[31m\u202e": {1: 1.0, 2: 2.0}})
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a\ufffd[31m\ufffd" in text
