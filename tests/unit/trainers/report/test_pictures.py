"""Pictures: reward.png of what was logged, and SVG that a page can hold as it is."""

import json
import re

import numpy as np
import pytest

from trainers.report.panels import HELD_OUT, REWARD, SECTIONS, Panel
from trainers.report.pictures import draw, running_mean, svg, thinned


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
    assert panel.found(curves) == {"brief": {1: -1.0}, "exact": {1: 0.5}, "sum": {1: -0.5}}


def test_a_scatter_without_one_of_its_axes_is_left_out():
    panel = Panel(title="x", metrics={"objective/kl": "x", "objective/scores": "y"}, kind="scatter")
    assert panel.found({"objective/scores": {1: 1.0}}) == {}


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
