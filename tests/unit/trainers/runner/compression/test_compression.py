"""Laws of a compression: its budget holds, it continues where it was, and nothing is paid twice."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.trainers.runner.compression.tiny_runs import (
    fast,
    run,
    save_dense,
    seconds_of,
    write_text,
)
from trainers.compress.database import EVALUATION_TOKENS, Database
from trainers.compress.row_files import read_splits
from trainers.compress.units import SizePlan
from trainers.compress.variants import WeightVariants
from trainers.models.loading import load_causal_lm
from trainers.runner.compression import driver, finishing
from trainers.runner.compression.finishing import plan_from_json


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a dense model and its text."""
    folder = tmp_path_factory.mktemp("compression")
    save_dense(folder / "dense")
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module")
def done(place):
    """A compression from beginning to end, under two budgets, with two more searchers."""
    with pytest.MonkeyPatch.context() as patch:
        fast(patch)
        budget = ("params=0.75", "latency=0.8")
        return run(place, name="done", budget=budget, search=("ppo", "evolution-from-dp", "greedy"))


def stage(result, name):
    return json.loads((result.run_dir / "stages" / f"{name}.json").read_text())["result"]


def test_the_exported_model_costs_no_more_than_the_budget(place, done):
    dense = AutoModelForCausalLM.from_pretrained(place / "dense")
    model = AutoModelForCausalLM.from_pretrained(done.run_dir / "model")
    sizes = [
        sum(w.numel() for name, w in m.named_parameters() if "norm" not in name)
        for m in (model, dense)
    ]
    assert sizes[0] / sizes[1] <= 0.75
    full, own = dense.config, model.config
    kv, groups = full.num_key_value_heads, own.num_key_value_heads
    layer = seconds_of("attention", groups, kv)
    layer += seconds_of("mlp", own.intermediate_size, full.intermediate_size)
    everything = 1.0 + full.num_hidden_layers * 5.0
    assert (1.0 + own.num_hidden_layers * layer) / everything <= 0.8 + 1e-9
    assert done.summary["model"]["modelled"]["params"] == pytest.approx(sizes[0] / sizes[1])
    AutoTokenizer.from_pretrained(done.run_dir / "model")


def test_the_export_computes_what_the_candidate_in_memory_does(place, done):
    database = Database(
        load_causal_lm(str(place / "dense")), read_splits(done.run_dir / "texts.safetensors")
    )
    plan = plan_from_json(done.summary["model"]["plan"])
    rows = read_splits(done.run_dir / "texts.safetensors").report[:3]
    model = AutoModelForCausalLM.from_pretrained(done.run_dir / "model").eval()
    with torch.no_grad():
        logits = model(input_ids=rows.tokens).logits
    expected = database.logits(plan, rows)
    torch.testing.assert_close(logits[rows.mask], expected[rows.mask], atol=1e-5, rtol=1e-5)
    assert done.summary["report_kl"] == pytest.approx(database.report_kl(plan), rel=1e-4)


def test_no_searcher_beats_the_model_and_ppo_is_never_worse_than_its_seed(done):
    searchers = done.summary["searchers"]
    assert list(searchers) == ["uniform", "shortgpt", "dp", "ppo", "evolution-from-dp", "greedy"]
    found = {name: row for name, row in searchers.items() if row["plan"] is not None}
    assert found["ppo"]["selection_kl"] <= found["dp"]["selection_kl"]
    assert found["evolution-from-dp"]["selection_kl"] <= found["dp"]["selection_kl"]
    assert stage(done, "search-ppo")["seed_kl"] == found["dp"]["selection_kl"]
    rows = stage(done, "finalists")["rows"]
    assert [row["kl"] for row in rows] == sorted(row["kl"] for row in rows)
    best = min(row["selection_kl"] for row in found.values())
    assert min(row["screened_kl"] for row in rows) <= best
    plans = [SizePlan(plan_from_json(row["plan"]).choices) for row in rows]
    assert len(set(plans)) == len(plans)


def test_every_searcher_pays_by_the_same_counter_up_to_the_same_limit(done):
    paid = stage(done, "table")["evaluations"]
    lines = (done.run_dir / "evaluations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    screened = [row for row in rows if row["tokens"] == EVALUATION_TOKENS]
    assert all(row["evaluations"] == 1 for row in screened)
    assert len({json.dumps(row["plan"]) for row in screened}) == len(screened)
    # One change each: three layers of three smaller groups, seven smaller widths and the drop.
    assert paid == 3 * (3 + 6 + 1)
    for name, row in done.summary["searchers"].items():
        before = paid if name in ("dp", "ppo", "evolution-from-dp") else 0
        assert before < row["evaluations"] <= 90
    assert done.summary["searchers"]["dp"]["evaluations"] == paid + 1
    assert done.summary["searchers"]["uniform"]["evaluations"] == 1


def test_a_run_that_was_stopped_anywhere_ends_as_one_that_was_not(place, monkeypatch):
    fast(monkeypatch)
    whole = run(place, name="whole")
    budgets = {"evaluations": 0, "limit": 10}
    original = Database._kl

    def counting(self, *arguments):
        budgets["evaluations"] += 1
        if budgets["evaluations"] > budgets["limit"]:
            raise KeyboardInterrupt
        return original(self, *arguments)

    stops = 0
    with monkeypatch.context() as patch:
        patch.setattr(Database, "_kl", counting)
        for limit in (10, 15, 20):
            budgets.update(evaluations=0, limit=limit)
            with pytest.raises(KeyboardInterrupt):
                run(place, name="stopped")
            stops += 1
            with (place / "runs" / "stopped" / "evaluations.jsonl").open("a") as stream:
                stream.write('{"plan": [[4, 1')  # as a kill leaves it
    for module, name in ((finishing, "exported"), (driver, "write_summary")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping)
            with pytest.raises(KeyboardInterrupt):
                run(place, name="stopped")
        stops += 1
    stopped = run(place, name="stopped")
    assert stops == 5
    assert stopped.summary["model"] == whole.summary["model"]
    for name, row in whole.summary["searchers"].items():
        ours = stopped.summary["searchers"][name]
        assert {k: v for k, v in ours.items() if k != "seconds"} == {
            k: v for k, v in row.items() if k != "seconds"
        }
    first, second = (
        load_file(result.run_dir / "model" / "model.safetensors") for result in (whole, stopped)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    texts = [(r.run_dir / "evaluations.jsonl").read_text() for r in (whole, stopped)]
    assert texts[0] == texts[1]  # none twice, none lost, in the same order


def stopping(*arguments, **options):
    raise KeyboardInterrupt


def test_a_run_that_is_done_computes_nothing_again(place, done, monkeypatch):
    fast(monkeypatch)
    copy = done.run_dir.with_name("copy")
    shutil.copytree(done.run_dir, copy, symlinks=True)
    monkeypatch.setattr(WeightVariants, "__init__", stopping)
    monkeypatch.setattr(driver, "load_causal_lm", stopping)
    budget = ("params=0.75", "latency=0.8")
    again = run(place, name="copy", budget=budget, search=("ppo", "evolution-from-dp", "greedy"))
    assert again.summary == done.summary


def test_the_report_is_read_once_at_the_end(place, monkeypatch):
    fast(monkeypatch)
    calls = []
    original = Database.report_kls

    def noting(self, plans, **options):
        assert (place / "runs" / "once" / "stages" / "measure.json").is_file()
        calls.append(len(plans))
        return original(self, plans, **options)

    monkeypatch.setattr(Database, "report_kls", noting)
    run(place, name="once", search=("random",))
    assert calls == [5]  # the model, uniform, shortgpt, dp, random
