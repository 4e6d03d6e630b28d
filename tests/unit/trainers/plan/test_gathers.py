"""Weights that ranks share out are gathered for every pass, which takes what the links take."""

import json
import re

import pytest

from tests.slow import slow
from trainers.cli import plan as module
from trainers.cli.main import main
from trainers.config import Config, GenerationConfig
from trainers.config.files import presets, read
from trainers.plan.counting import Usage
from trainers.plan.lengths import Lengths, Work
from trainers.plan.pace import ASSUMED, BETWEEN, HIGH, LOW, WITHIN, Pace
from trainers.plan.state import Holding

JSON = {"zero_optimization": {"stage": 3}, "bf16": {}}
CLUSTERS = [name for name in presets() if name.startswith(("llama_", "qwen_"))]


def test_a_pass_receives_what_the_other_ranks_hold():
    assert Holding(ranks=4, json=JSON).gathered(1000) == 2 * 750
    assert Holding(ranks=1, json=JSON).gathered(1000) == 0
    assert Holding(ranks=4, json={"zero_optimization": {"stage": 2}}).gathered(1000) == 0
    assert Holding(ranks=4).gathered(1000) == 0


def test_a_response_gathers_for_every_token_until_the_longest_ends():
    config = Config(generation=GenerationConfig(max_prompt_tokens=60, max_new_tokens=40))
    lengths = Lengths(prompt=30.0, response=(10.0, 30.0), source="")
    work = Work(name="", usage=Usage(peak=0, received=400), often=1, part="response")
    assert [work.real(config, lengths, end).received for end in (0, 1)] == [200, 400]


def test_what_is_received_takes_time():
    pace = Pace(flops=1.0, written=1.0, call=1.0, source="", link=50.0)
    once = Usage(peak=0, received=100)
    assert pace.seconds(once) == 2
    assert pace.seconds(once.times(3).then(once)) == 8


@pytest.mark.parametrize(("nodes", "link"), [(2, BETWEEN), slow(1, WITHIN)])
def test_a_rollout_without_a_copy_gathers_the_policy_for_every_pass(
    nodes, link, capsys, monkeypatch
):
    monkeypatch.setattr(module, "_pace", lambda *_args, **_kwargs: ASSUMED)
    words = ["plan", "quickstart", "--nodes", str(nodes), "--gpus", "4", "--backend.name",
             "deepspeed", "--backend.zero.stage", "3",
             "--model.dimensions.num-layers", "1"]  # fmt: skip
    found = []
    for more in ([], ["--backend.zero.gather_gb", "0"]):
        assert main([*words, *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    copied, gathered = (one["time"]["rollout"]["seconds"] for one in found)
    ranks, size, texts = 4 * nodes, found[1]["parameters"]["policy"], found[1]["texts"]
    limit = found[1]["config"]["generation"]["max_new_tokens"]
    for end, off in enumerate((LOW, HIGH)):
        passes = 1 + min(limit, 2 * texts["response"][end])
        seconds = passes * 2 * size * (ranks - 1) / ranks / link
        assert gathered[end] - copied[end] == pytest.approx(off * seconds, rel=1e-3)
    assert found[0]["time"]["values"] == found[1]["time"]["values"]
    assert main([*words, "--backend.zero.gather_gb", "0", "--quiet"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert f"weights gathered at {link / 1e9:g} GB/s a rank, assumed" in page
    assert "how far gathers stay below that speed: the policy takes more than" in page
    assert "time that ranks sum gradients up and move what is offloaded" in page


@pytest.mark.parametrize("preset", CLUSTERS)
def test_slurm_gives_notice_of_the_gathers_of_an_iteration_and_an_evaluation(preset, capsys):
    config = read([presets()[preset]])
    backend, billions = config.backend, float(re.findall(r"_(\d+)b_", preset)[0])
    per_pass = Holding(ranks=backend.ranks, json=JSON).gathered(round(billions * 1e9))
    link = BETWEEN if backend.nodes > 1 else WITHIN
    batches = sum(
        -(-rows // (backend.ranks * config.generation.batch_size))
        for rows in (config.ppo.num_episodes, config.eval.num_tasks)
    )
    seconds = HIGH * batches * config.generation.max_new_tokens * per_pass / link
    assert main(["launch", "slurm", "--", preset]) == 0
    (notice,) = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", capsys.readouterr().out, re.M)
    assert int(notice) > 1.5 * seconds, "the update and the save come on top"
