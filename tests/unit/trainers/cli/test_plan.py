"""`llmgym plan` as a person types it: what it prints and refuses, and that it starts nothing."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from trainers.cli import plan as module
from trainers.cli.main import main
from trainers.plan.counting import Usage
from trainers.plan.pace import Pace, on_threads, one_thread, probed, tried

SMALL = ["--ppo.num-prompts", "4", "--generation.max-prompt-tokens", "16",
         "--generation.max-new-tokens", "4", "--eval.num-tasks", "8",
         "--model.dimensions.num-layers", "1"]  # fmt: skip
SIZES = ["--model.dimensions.hidden-size", "64", "--model.dimensions.intermediate-size", "96",
         "--model.dimensions.num-layers", "2", "--model.dimensions.num-heads", "4",
         "--model.vocab-size", "512"]  # fmt: skip


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty folder, a machine of known speed, memory and disk."""
    monkeypatch.chdir(tmp_path)
    pace = Pace(flops=1e11, written=1e10, call=1e-5, source="of a test")
    monkeypatch.setattr(module, "probed", lambda *_args, **_kwargs: pace)
    monkeypatch.setattr(module, "tried", lambda known, *_args, **_kwargs: known)
    monkeypatch.setattr(module, "available_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(module, "_free", lambda _folder: 10 * 2**30)
    return tmp_path


def said(capsys, *words, code=0):
    assert main(words) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_plan_and_dry_run_print_the_same_and_start_nothing(capsys, alone):
    planned = said(capsys, "plan", "quickstart", *SMALL, "--ppo.num-minibatches", "1")
    dry = said(capsys, "train", "quickstart", *SMALL, "--ppo.num-minibatches", "1", "--dry-run")
    assert planned == dry
    assert list(alone.iterdir()) == []
    for part in ("num_prompts: 4", "4 prompts x 1 responses", "rollout", "update", "save", "disk",
                 "fits into the 8 GiB", "120 iterations of"):  # fmt: skip
        assert part in planned


def test_json_is_all_that_a_new_process_prints():
    words = [sys.executable, "-m", "trainers.cli", "plan", "quickstart", *SMALL, "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["config"]["run"]["name"] == "quickstart"


def test_quiet_leaves_the_settings_out_and_eighty_columns_hold_the_rest(capsys):
    page = said(capsys, "plan", *SMALL, "--quiet")
    assert "num_prompts:" not in page
    assert max(len(line) for line in page.splitlines()) <= 80


def test_a_hub_id_that_cannot_be_read_says_what_to_give_instead(capsys):
    error = said(capsys, "plan", "--model.path", "no/such-model", code=2)
    assert "no/such-model is neither a folder nor in the local cache" in error
    assert "--model.config FILE" in error
    assert "--model.dimensions.hidden-size N" in error


def test_a_hub_id_is_planned_by_its_sizes(capsys):
    page = said(capsys, "plan", "--model.path", "no/such-model", *SIZES, *SMALL)
    assert "no/such-model, by model.dimensions" in page


def test_sizes_that_are_given_in_part_are_named(capsys):
    error = said(capsys, "plan", "--model.path", "no/such-model", *SIZES[:4], code=2)
    assert "model.dimensions.num_layers, model.dimensions.num_heads, model.vocab_size" in error


def test_a_hub_id_is_planned_by_its_config_json(capsys, alone):
    sizes = {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 512,
             "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2}  # fmt: skip
    (alone / "config.json").write_text(json.dumps(sizes), "utf-8")
    words = ["--model.path", "no/such-model", "--model.config", "config.json"]
    found = json.loads(said(capsys, "plan", *words, *SMALL, "--json"))
    layer = 64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert found["parameters"]["policy"] == 2 * layer + 64 + 2 * 512 * 64
    assert found["config"]["model"]["path"] == "no/such-model"
    phases = [one["name"] for one in found["memory"]]
    assert phases == ["rollout", "logprobs", "values", "update", "save", "evaluate"]


@pytest.mark.parametrize(("text", "part"), [(None, "does not exist"), ("{}", "is no model's")])
def test_a_config_json_that_is_none_is_refused(text, part, capsys, alone):
    if text is not None:
        (alone / "c.json").write_text(text, "utf-8")
    words = ["--model.path", "no/such-model", "--model.config", "c.json"]
    assert part in said(capsys, "plan", *words, code=2)


def test_a_description_without_a_model_is_refused(capsys):
    error = said(capsys, "plan", "--model.config", "c.json", code=2)
    assert "describes model.path, which is not set" in error


def test_heads_that_do_not_divide_the_width_are_refused(capsys):
    error = said(capsys, "plan", "--model.dimensions.num-heads", "3", code=2)
    assert "hidden_size 128 must be a multiple of num_heads 3" in error


def test_what_cannot_be_shared_is_shown_and_refused(capsys):
    assert main(["plan", *SMALL, "--gpus", "3", "--quiet"]) == 2
    captured = capsys.readouterr()
    assert "16 rows / 3 ranks = 5.33333 rows a rank" in captured.out
    assert "cannot be shared by 3 ranks" in captured.err
    assert "llmgym plan --gpus 3 shows the whole arithmetic" in captured.err


def test_gpus_that_are_not_there_are_planned_for(capsys):
    page = said(capsys, "plan", *SMALL, "--gpus", "2", "--quiet")
    assert "in bfloat16" in page
    assert "8 rows a rank" in page
    assert "250 TFLOP/s" in page or torch.cuda.is_available()


def test_machines_that_share_a_model_out_are_planned_for(capsys):
    words = ["--backend.name", "deepspeed", "--backend.zero.stage", "3", "--nodes", "2",
             "--gpus", "2", "--backend.zero.offload", "params"]  # fmt: skip
    page = said(capsys, "plan", *SMALL, *words)
    assert "2 x 2 GPUs = 4: DeepSpeed ZeRO 3, offload params" in page
    assert '"offload_param"' in page
    assert "of memory a machine at most, in" in page
    assert "runs/default\n" in page  # the need, which this machine's disk does not judge
    assert "FIT" not in page
    found = json.loads(said(capsys, "plan", *SMALL, *words, "--json"))
    assert found["deepspeed"]["policy"]["bf16"]["enabled"] is True
    assert set(found["host"]) == {"load", "training", "save"}
    assert {one["weights"] for one in found["memory"]} == {2 * found["parameters"]["policy"]}


def test_moments_that_leave_between_phases_are_on_the_host_in_all_but_the_update(capsys):
    words = ["--backend.name", "deepspeed", "--backend.zero.stage", "2", "--gpus", "2"]
    asked = ["--backend.offload-between-phases", "true"]
    stay, leave = (
        json.loads(said(capsys, "plan", *SMALL, *words, *more, "--json")) for more in ([], asked)
    )
    sizes = stay["parameters"]
    moved = 12 * sum(-(-sizes[role] // 2) for role in ("policy", "critic"))
    for one, other in zip(stay["memory"], leave["memory"], strict=True):
        stays = one["name"] in ("update", "save")
        assert one["total"] - other["total"] == (0 if stays else moved), one["name"]
    assert leave["host"]["rollout"] == moved


def test_a_copy_that_writes_ahead_is_planned_in_every_phase(capsys):
    without, ahead = (
        json.loads(said(capsys, "plan", *SMALL, "--generation.ahead", number, "--json"))
        for number in "01"
    )
    phases = zip(without["memory"], ahead["memory"], strict=True)
    more = {other["name"]: other["total"] - phase["total"] for phase, other in phases}
    assert set(more.values()) == {4 * without["parameters"]["policy"]}


def test_a_stage_is_planned_for_ranks_on_this_machine(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--backend.name", "deepspeed", "--backend.zero.stage", "2", "--model.dtype", "float32"]
    found = json.loads(said(capsys, "plan", *SMALL, *words, "--json"))
    sizes, rows = found["parameters"], {one["name"]: one for one in found["memory"]}
    assert rows["update"]["weights"] == 4 * sum(sizes.values())
    shares = [-(-sizes[role] // 2) for role in ("policy", "critic")]
    assert rows["update"]["gradients"] == 4 * sum(shares)
    assert rows["rollout"]["gradients"] == 0


def test_a_users_file_is_read_as_strictly_as_in_a_run(capsys, alone):
    (alone / "ds.json").write_text('{"zero_optimisation": {}}', "utf-8")
    words = ["--backend.name", "deepspeed", "--deepspeed_config", "ds.json"]
    assert "Did you mean zero_optimization" in said(capsys, "plan", *SMALL, *words, code=2)


def test_what_does_not_fit_is_said_with_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 2**20)
    monkeypatch.setattr(module, "_free", lambda _folder: 2**20)
    page = said(capsys, "plan", *SMALL[:-2], "--quiet")  # every layer of the preset
    assert "DOES NOT FIT into the 1 MiB" in page
    assert "--backend.micro-batch-tokens" in page
    assert "--run.dir DIR" in page


def test_a_numeric_run_is_planned(capsys):
    page = said(capsys, "plan", "cartpole", "--quiet")
    assert "8 environments x 256 steps = 2048 rows" in page
    assert "mlp [64, 64]" in page


def test_the_supervised_stage_is_planned(capsys):
    page = said(capsys, "sft", *SMALL, "--dry-run", "--quiet")
    assert "sft save" in page
    assert "rollout" not in page


def test_a_reward_model_is_planned_as_far_as_it_is_known(capsys):
    page = said(capsys, "reward-model", *SMALL, "--data", "p.jsonl", "--dry-run", "--quiet")
    assert "reward_model save" in page
    assert "activations and time of the stage reward_model" in page


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["plan", "quickstrat"], "Did you mean quickstart?"),
        (["plan", "--envs.0.id", "llmgym/Arithmetc-v0"], "Arithmetic"),
        (["plan", "--gpus", "0"], "backend.gpus"),
        (["plan", "--nodes", "2"], "backend.nodes 2 needs the GPUs of a machine"),
        (["train", "--json"], "--json belongs to a plan"),
        (["plan", "--model.context", "64"], "exceeds the model's context of 64"),
    ],
)
def test_mistakes_are_named_as_elsewhere(words, part, capsys):
    assert part in said(capsys, *words, code=2)


def test_the_time_of_some_work_is_the_sum_of_its_three_parts():
    pace = Pace(flops=100.0, written=10.0, call=0.5, source="")
    assert pace.seconds(Usage(peak=0, flops=200, written=30, calls=4)) == 2 + 3 + 2


def test_a_probe_finds_rates_above_zero():
    pace = probed(32, 64, dtype=torch.float32, device=torch.device("cpu"))
    assert min(pace.flops, pace.written, pace.call) > 0


def test_a_layer_that_is_tried_changes_every_rate_alike():
    before = Pace(flops=1e11, written=1e10, call=1e-5, source="")
    sizes = {"tokens": (2, 8), "dtype": torch.float32, "device": torch.device("cpu")}
    after = tried(before, 32, 64, **sizes)
    off = after.call / before.call
    assert off > 0
    assert (after.flops * off, after.written * off) == pytest.approx((1e11, 1e10))
    assert tried(before, 8192, 64, **sizes) is before


def test_time_is_that_of_the_environments_own_texts(capsys):
    page = said(capsys, "plan", "quickstart", "--quiet")
    assert re.search(r"prompts of \d+ tokens \(limit 32\), responses of \d to \d \(limit 8\)", page)
    found = json.loads(said(capsys, "plan", "guess_number", "--json"))
    assert 2 < found["texts"]["turns"] <= 3
    for low, high in (one["seconds"] for one in found["time"].values()):
        assert 0 < low < high <= 4 * low


def test_tasks_that_are_not_there_are_planned_at_their_limits(capsys):
    words = ["gsm8k_small_cpu", "--model.preset", "tiny", "--envs.0.kwargs.path", "none.jsonl"]
    page = " ".join(said(capsys, "plan", *words, "--quiet").split())
    assert "prompts of 256 tokens (limit 256), responses of 72 to 168 (limit 240): no task" in page


def test_without_a_tokenizer_characters_are_counted(capsys):
    words = ["--model.path", "no/such-model", *SIZES, *SMALL, "--quiet"]
    assert "64 tasks at 4 characters a token" in " ".join(said(capsys, "plan", *words).split())


def test_threads_help_less_than_their_number_and_are_put_back():
    one = Pace(flops=1.0, written=1.0, call=1.0, source="s")
    work = Usage(peak=0, flops=1, written=1, calls=1)
    assert 1.5 < one.seconds(work) / on_threads(one, 2).seconds(work) < 2
    assert on_threads(one, 1) is one
    before = torch.get_num_threads()
    with one_thread() as threads:
        assert (threads, torch.get_num_threads()) == (before, 1)
    assert torch.get_num_threads() == before
