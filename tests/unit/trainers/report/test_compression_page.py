"""The page of a compression: what is in its file is on the page, and nothing else runs."""

import json
import re

import pytest

from trainers.config.files import dump, read
from trainers.errors import ConfigError
from trainers.report.compression import compression_facts, heat_map, pareto
from trainers.report.page import write_report

SUMMARY = {
    "dense": "runs/<b>dense</b>/model",
    "budget": {"latency": 0.5},
    "searchers": {
        "greedy": {"selection_kl": None, "report_kl": None, "evaluations": 90, "plan": None},
        "dp": {"selection_kl": 0.021, "report_kl": 0.0234, "evaluations": 41, "plan": [0]},
        "ppo": {"selection_kl": 0.011, "report_kl": 0.0123, "evaluations": 77, "plan": [1]},
    },
    "model": {"dense_parameters": 2_700_000, "parameters": 1_300_000},
    "measured_latency": {"median": 0.487, "low": 0.471, "high": 0.502},
    "report_kl": 0.0123,
    "scores": {"dense": {"mean": 0.96}, "model": {"mean": 0.91, "low": 0.87, "high": 0.94}},
    "kept": {"model": [[0.5, 0.25], [0.0, 0.0]], "ppo": [[0.5, 0.25], [0.0, 0.0]]},
    "front": [
        {
            "kind": "latency",
            "share": 0.45,
            "kept": [[0.75, 0.125], [0.0, 0.0]],
            "predicted_kl": 0.3,
            "best_kl": None,
        },
        {
            "kind": "latency",
            "share": 0.65,
            "kept": [[1.0, 1.0], [0.0, 0.0]],
            "predicted_kl": 0.1,
            "best_kl": 0.05,
        },
    ],
}


@pytest.fixture
def run(tmp_path):
    """A run folder of a compression."""
    folder = tmp_path / "half"
    folder.mkdir()
    config = read([], {"ppo.num_iterations": 0, "run.name": "half"})
    (folder / "config.yaml").write_text(dump(config))
    (folder / "status.json").write_text(json.dumps({"status": "finished", "stage": "compress"}))
    (folder / "compression.json").write_text(json.dumps(SUMMARY))
    return folder


def test_the_page_shows_every_figure_of_the_file_and_escapes_its_names(run):
    text = write_report([run]).read_text("utf-8")
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert cells[:4] == ["ppo", "0.011", "0.0123", "77"]
    assert cells.index("dp") < cells.index("greedy")
    for figure in ("0.487", "0.471", "0.502", "0.91", "0.87"):
        assert figure in text
    for cell in ("50 / 25", "75 / 12", "100 / 100", "0 / 0"):
        assert cell in cells
    assert "runs/&lt;b&gt;dense&lt;/b&gt;/model" in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "Nothing was logged" not in text


def test_the_same_file_gives_the_same_page(run):
    first = write_report([run]).read_text("utf-8")
    assert write_report([run]).read_text("utf-8") == first


def test_columns_are_budgets_then_searchers_and_rows_are_layers():
    heat = heat_map(SUMMARY["front"], SUMMARY["kept"])
    assert heat["columns"] == ["0.45", "0.65", "ppo"]
    assert heat["grid"] == 2
    assert heat["rows"][0] == [[0.75, 0.125], [1.0, 1.0], [0.5, 0.25]]
    assert len(heat["rows"]) == 2


def test_a_picture_of_nothing_is_none():
    assert pareto([], {}, {"latency": 0.5}) == ""
    assert pareto(SUMMARY["front"], {}, {"latency": 0.5}).startswith("<svg")


def test_a_damaged_file_is_named_with_the_way_back(run):
    (run / "compression.json").write_text('{"budget": {}}')
    with pytest.raises(ConfigError, match=r"compression\.json is damaged: KeyError"):
        write_report([run])
    (run / "compression.json").unlink()
    assert compression_facts(run) is None
