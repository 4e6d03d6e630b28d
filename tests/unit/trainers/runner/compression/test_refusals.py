"""What a compression refuses, with the reason and the remedy, and before weights load if it can."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from llmgym.errors import TaskSourceError
from tests.unit.trainers.runner.compression.tiny_runs import (
    dense_config,
    fast,
    run,
    save_dense,
    settings,
    write_text,
)
from trainers.config.compression import CompressionSettings
from trainers.errors import CheckpointError, ConfigError, MeasurementError
from trainers.models import int8
from trainers.runner.compression import driver, measuring
from trainers.runner.compression.driver import compress
from trainers.runner.compression.stage_files import StageFiles


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a dense model and its text."""
    folder = tmp_path_factory.mktemp("refused")
    save_dense(folder / "dense")
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """No weights may load, and no time is taken."""
    fast(monkeypatch)

    def refuse(source):
        raise AssertionError("weights load")

    monkeypatch.setattr(driver, "load_causal_lm", refuse)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ((), "no budget is given.*--budget latency=0.5"),
        (("speed=0.5",), "a budget is of latency, bytes, params, got 'speed=0.5'"),
        (("latency=2",), "of latency is a share of the dense model between 0 and 1, got '2'"),
        (("latency=half",), "between 0 and 1, got 'half'"),
        (("latency=nan",), "between 0 and 1, got 'nan'"),
        (("latency=0.5", "latency=0.6"), "the budget of latency is given twice"),
    ],
)
def test_budgets_that_mean_nothing(budget, message):
    with pytest.raises(ConfigError, match=message):
        CompressionSettings(budget=budget)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": ("tabu",)}, "--search is one of ppo, ppo-cold, dp, .*, got 'tabu'"),
        ({"recover": "luck"}, "--recover is one of none.*, got 'luck'"),
        ({"phase": "idle"}, "--phase is one of decode, prefill, got 'idle'"),
        ({"evaluations": 0}, "--evaluations must be 1 or more, got 0"),
        ({"rounds": 3}, "--rounds must be 10 or more, got 3"),
        ({"row_tokens": 1}, "--row-tokens must be 2 or more, got 1"),
    ],
)
def test_settings_of_no_use(change, message):
    with pytest.raises(ConfigError, match=message):
        CompressionSettings(budget=("latency=0.5",), **change)


@pytest.mark.parametrize("kind", ["params", "bytes", "latency"])
def test_a_budget_that_no_plan_meets_names_the_least(place, kind):
    with pytest.raises(TaskSourceError, match=rf"meets the budget {kind}=0.01 .*: {kind}=0\.\d+\. "
                       "Give a larger budget") as caught:  # fmt: skip
        run(place, name=f"least-{kind}", budget=(f"{kind}=0.01",))
    least = str(caught.value).split("can have: ")[1].split(". Give")[0]
    with pytest.raises(AssertionError, match="weights load"):  # it is a budget that a plan meets
        run(place, name=f"enough-{kind}", budget=(least,))


def test_a_family_that_cannot_be_sliced(place, tmp_path):
    config = AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=2, vocab_size=300)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt")
    with pytest.raises(ConfigError, match=r"family gpt2 cannot be sliced\. These can: llama, mist"):
        compress(dense_config(tmp_path / "gpt"), settings(place), has_env=False)


def test_heads_that_form_no_groups(place, tmp_path):
    config = json.loads((place / "dense" / "config.json").read_text())
    (tmp_path / "odd").mkdir()
    for file in (place / "dense").iterdir():
        (tmp_path / "odd" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 3}))
    with pytest.raises(ConfigError, match="8 attention heads do not form equal groups over 3 KV"):
        compress(dense_config(tmp_path / "odd"), settings(place), has_env=False)


def test_a_model_without_text(place):
    with pytest.raises(ConfigError, match=r"belongs to no run.*--data FILE, or an environment"):
        run(place, name="none", data=None)
    with pytest.raises(ConfigError, match=r"there is no file gone\.txt"):
        run(place, name="none", data="gone.txt")
    with pytest.raises(ConfigError, match="--report-data needs --data"):
        run(place, name="none", data=None, report_data=str(place / "text.txt"))
    assert not (place / "runs" / "none").exists()


def test_too_little_text(place, tmp_path):
    few = write_text(tmp_path / "few.txt", count=4)
    with pytest.raises(ConfigError, match=r"the calibration split has \d+ tokens, and this model "
                       r"needs 256"):  # fmt: skip
        run(place, name="few", data=str(few))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(ConfigError, match="split has no row"):
        run(place, name="empty", data=str(empty))


def test_text_that_leaks_into_the_report(place):
    text = str(place / "text.txt")
    with pytest.raises(ConfigError, match=r"\d+ tasks are in .* and in report, such as "):
        run(place, name="leak", data=text, report_data=text)


def test_a_processor_without_int8_kernels(place, monkeypatch):
    monkeypatch.setattr(int8, "INT8_KERNEL", "none of this machine")
    with pytest.raises(ConfigError, match=r"no int8 kernels .*\nOr leave int8 out: --no-int8"):
        run(place, name="kernels", int8=True)
    assert not (place / "runs" / "kernels").exists()


def test_evaluations_that_do_not_suffice(place):
    message = "the sensitivities of this model take 30, and one iteration of PPO 16. Set --eval"
    with pytest.raises(ConfigError, match=message):
        run(place, name="poor", evaluations=40)
    with pytest.raises(AssertionError, match="weights load"):  # without PPO it does
        run(place, name="rich", evaluations=40, search=("random",))


def test_a_latency_table_that_predicts_nothing(place, monkeypatch):
    tried = []

    def wrong(*arguments, rounds, **options):
        tried.append(rounds)
        table = original(*arguments, rounds=rounds, **options)
        rows = tuple((1.0, 2.0) for _ in table.fit.rows)
        fit = type(table.fit)(r2=0.0, largest_error=1.0, rows=rows)
        return type(table)(
            constant=1.0, units=table.units, fit=fit, workload=table.workload, record={}
        )

    original = measuring.measure_latency
    monkeypatch.setattr(measuring, "measure_latency", wrong)
    with pytest.raises(MeasurementError, match=r"wrong by up to 100.0%.*Measure again on an idle"):
        run(place, name="noise", budget=("latency=0.5",))
    assert tried == [60, 120, 240]


def test_another_start_of_the_same_name(place):
    with pytest.raises(AssertionError, match="weights load"):
        run(place, name="mine")
    with pytest.raises(ConfigError, match=r"other settings: seed 0 -> 1. Give those it was started "
                       r"with, or --clean moves it away, or --name mine-2"):  # fmt: skip
        run(place, name="mine", seed=1)
    write_text(place / "other.txt", seed=9)
    with pytest.raises(ConfigError, match=r"other settings: data .*, file of data "):
        run(place, name="mine", data=str(place / "other.txt"))
    with pytest.raises(AssertionError, match="weights load"):
        run(place, name="mine")


def test_a_result_that_is_damaged(tmp_path):
    stages = StageFiles(tmp_path)
    assert stages.run("a", {"x": 1}, lambda: {"y": 2}) == {"y": 2}
    assert StageFiles(tmp_path).run("a", {"x": 1}, dict) == {"y": 2}
    with pytest.raises(ConfigError, match="x 1 -> 2"):
        StageFiles(tmp_path).run("a", {"x": 2}, dict)
    (tmp_path / "stages" / "a.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"is damaged: .*Remove it, and its stage runs again"):
        StageFiles(tmp_path).run("a", {"x": 1}, dict)


def test_a_stage_behind_another_result_is_refused(tmp_path):
    stages = StageFiles(tmp_path)
    stages.run("a", {}, lambda: {"y": 1})
    stages.run("b", {}, lambda: {"z": 1})
    (tmp_path / "stages" / "a.json").unlink()
    stages = StageFiles(tmp_path)
    stages.run("a", {}, lambda: {"y": 2})
    with pytest.raises(
        ConfigError, match="result of the stage b with other settings: stage before"
    ):
        stages.run("b", {}, dict)
