"""A setting that changes nothing is named with what does, once a start."""

import pytest

from tests import tiny
from trainers.config.checks import INEFFECTIVE, emulated, for_practice, without_effect
from trainers.config.files import presets, read
from trainers.errors import ConfigError
from trainers.runner.run import run

MLP = {"run.kind": "control", "ppo.kl_placement": "none"}
NO_CRITIC = {"ppo.critic": "none", "ppo.advantage": "rloo"}
TAUGHT = {
    "distill.teacher": "t",
    "ppo.critic": "none",
    "ppo.advantage": "teacher",
    "ppo.kl_placement": "none",
}
GKD = {**TAUGHT, "distill.method": "gkd"}
IN_VAIN = [
    ("ppo.critic_learning_rate", 1e-3, {"ppo.critic": "shared"}, "ppo.learning_rate"),
    ("ppo.critic_init", "a/b", {"ppo.critic": "shared"}, "ppo.critic separate"),
    ("ppo.gae_lambda", 0.5, NO_CRITIC, "ppo.advantage gae with a critic"),
    ("ppo.value_clip", 0.5, NO_CRITIC, "ppo.advantage gae with a critic"),
    ("ppo.scale_advantages", True, {}, "ppo.whiten_advantages"),
    ("ppo.critic_reads_logprobs", True, NO_CRITIC, "a text run with a critic"),
    ("ppo.value_coef", 0.5, {}, "ppo.critic_learning_rate"),
    ("ppo.whiten_advantages", True, TAUGHT, "distill.coef"),
    ("distill.method", "gkd", {}, "distill.teacher and ppo.num_iterations"),
    ("distill.max_tokens", 9, {}, "distill.teacher and ppo.num_iterations"),
    ("distill.max_minutes", 9.0, {}, "distill.teacher and ppo.num_iterations"),
    ("distill.coef", 0.5, GKD, "distill.teacher and distill.method ppo"),
    ("distill.clip", 5.0, GKD, "distill.teacher and distill.method ppo"),
    ("distill.beta", 0.1, TAUGHT, "distill.teacher and distill.method gkd"),
    ("ppo.clip_low", 0.1, GKD, "distill.method ppo"),
    ("ppo.clip_high", 0.1, GKD, "distill.method ppo"),
    ("ppo.clip_dual", 3.0, GKD, "distill.method ppo"),
    ("ppo.target_kl", 0.2, GKD, "distill.method ppo"),
    ("ppo.entropy_coef", 0.2, GKD, "distill.method ppo"),
    ("ppo.old_logprobs", "recompute", GKD, "distill.method ppo"),
    ("ppo.mismatch_correction", "tis", GKD, "distill.method ppo"),
    ("ppo.kl_target", 3.0, {}, "ppo.kl_controller adaptive"),
    ("ppo.kl_horizon", 3.0, {}, "ppo.kl_controller adaptive"),
    ("ppo.truncation_penalty", -1.0, {}, "ppo.on_truncation penalty"),
    ("ppo.samples_per_prompt", 2, MLP, "ppo.num_prompts"),
    ("generation.ahead", 1, MLP, "train on text"),
    ("envs.0.executor", "threads", MLP, "train on text"),
    ("envs.0.curriculum.up", 0.9, {}, "set its levels"),
    ("envs.0.curriculum.down", 0.1, {}, "set its levels"),
    ("envs.0.curriculum.window", 7, {}, "set its levels"),
    ("ppo.num_steps", 7, {}, "generation.max_new_tokens"),
    ("data.response_column", "a", {}, "envs.0.kwargs.solution_column"),
    ("data.num_examples", 8, {}, "sft.num_epochs"),
    ("model.lora.alpha", 8.0, {}, "model.lora.rank"),
    ("model.lora.targets", ["q_proj"], {}, "model.lora.rank"),
    ("model.lora.critic", "whole", {"ppo.critic": "shared", "model.lora.rank": 2}, "separate"),
    ("model.hidden_sizes", [8], {}, "model.preset"),
    ("backend.zero.stage", 3, {}, "backend.name deepspeed"),
    ("backend.zero.offload", "optimizer", {}, "backend.name deepspeed"),
    ("backend.zero.gather_gb", 1.0, {}, "backend.name deepspeed"),
    ("backend.offload_between_phases", True, {}, "stage 2 or 3 without offload"),
    ("generation.vllm.cache_gb", 2.0, {}, "generation.engine vllm"),
    ("generation.vllm.options", {"a": 1}, {}, "generation.engine vllm"),
    ("generation.servers", ["http://h:1"], {}, "generation.engine vllm"),
    ("generation.timeout_seconds", 9.0, {}, "generation.engine vllm"),
    ("generation.tolerance", 0.5, {}, "generation.engine vllm or continuous"),
    ("generation.speculative.drafter", "m", {}, "generation.engine speculative"),
    ("generation.speculative.length", 2, {}, "generation.engine speculative"),
    ("generation.speculative.entropy", 2.0, {}, "generation.engine speculative"),
    ("generation.speculative.controller", "c", {}, "generation.engine speculative"),
    ("generation.speculative.longest", 4, {}, "generation.engine speculative"),
    ("eval.min_delta", 0.1, {}, "eval.patience"),
]


@pytest.mark.parametrize(
    ("name", "value", "others", "remedy"),
    IN_VAIN,
)
def test_a_setting_in_vain_is_named_with_its_value_and_what_has_an_effect(
    name, value, others, remedy
):
    (said,) = without_effect(read([], {**others, name: value}), has_gpu=False)
    assert said.startswith(f"{name} {value} has no effect while ")
    assert said.endswith(f"{remedy}.") or f"{remedy}, " in said
    assert without_effect(read([], others), has_gpu=False) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"ppo.critic_learning_rate": 1e-3},
        {"ppo.critic": "shared", "ppo.value_coef": 0.5},
        {"ppo.kl_controller": "adaptive", "ppo.kl_target": 3.0, "ppo.kl_horizon": 9.0},
        {"ppo.on_truncation": "penalty", "ppo.truncation_penalty": -1.0},
        {**MLP, "ppo.samples_per_prompt": 1, "ppo.num_steps": 7, "model.hidden_sizes": [8]},
        {**NO_CRITIC, "ppo.scale_advantages": True},
        {**NO_CRITIC, **MLP, "ppo.samples_per_prompt": 8},
        {**TAUGHT, "distill.coef": 0.5, "distill.clip": 5.0, "ppo.target_kl": 0.2},
        {**GKD, "distill.beta": 0.1, "distill.max_tokens": 9, "distill.max_minutes": 9.0},
        {"eval.patience": 2, "eval.min_delta": 0.1},
        {"envs.0.executor": "processes", "envs.0.workers": 2, "envs.0.memory_gb": 1.5},
        {"generation.engine": "vllm", "generation.tolerance": 0.5, "generation.vllm.cache_gb": 2.0},
        {"generation.engine": "speculative", "generation.speculative.drafter": "m"},
        {"generation.engine": "continuous", "generation.tolerance": 0.5},
        {"sft.num_epochs": 1, "data.num_examples": 8, "data.response_column": "a"},
        {"model.lora.rank": 2, "model.lora.alpha": 8.0, "model.lora.critic": "whole"},
    ],
)
def test_a_setting_that_has_an_effect_is_not(changes):
    assert without_effect(read([], changes), has_gpu=False) == []


def test_no_preset_sets_anything_in_vain():
    found = {name: without_effect(read([file]), has_gpu=False) for name, file in presets().items()}
    assert found
    assert {name: said for name, said in found.items() if said} == {}


def test_every_such_setting_is_tried_above():
    assert [name for name, *_ in IN_VAIN] == [name for name, *_ in INEFFECTIVE]


def test_a_run_says_it_once(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    config = tiny.run_settings(model, tmp_path, **{"ppo.kl_target": 3.0})
    folder = run(config, reward=tiny.letters, loggers=[]).run_dir
    log = (folder / "logs" / "latest" / "rank_0.log").read_text()
    assert log.count("ppo.kl_target 3.0 has no effect") == 1


OWN_ROWS = {"envs.0.id": "llmgym/Prompts-v0", "envs.0.kwargs.path": "my.jsonl"}


@pytest.mark.parametrize(
    ("changes", "words", "options"),
    [
        ({}, ["a fresh model"], ["--model.path MODEL"]),
        (OWN_ROWS, ["a fresh model"], ["--model.path MODEL"]),
        (
            {"envs.0.id": "llmgym/Prompts-v0"},
            ["a fresh model", "the few written in llmgym/Prompts-v0"],
            ["--model.path MODEL", "--data my.jsonl --reward my_reward.py:score"],
        ),
        (
            {"envs.0.id": "llmgym/Prompts-v0", "model.path": "a/b"},
            ["the few written in llmgym/Prompts-v0"],
            ["--data my.jsonl --reward my_reward.py:score"],
        ),
    ],
)
def test_a_run_for_practice_says_what_was_not_named_and_how_it_is(changes, words, options):
    (said,) = for_practice(read([], changes))
    assert all(one in said for one in words)
    assert said.endswith(f"Name your own: {' '.join(options)}")


@pytest.mark.parametrize(
    "changes",
    [
        {**OWN_ROWS, "model.path": "a/b"},
        {"sft.num_epochs": 1},
        {"ppo.num_iterations": 0, "sft.num_epochs": 1},
        {**MLP, "envs.0.id": "CartPole-v1"},
    ],
)
def test_a_run_that_names_its_model_and_prompts_is_not_for_practice(changes):
    assert for_practice(read([], changes)) == []


def test_a_run_that_trains_nothing_is_refused(tmp_path):
    settings = {"run.dir": str(tmp_path), "ppo.num_iterations": 0, "model.path": "a/b"}
    with pytest.raises(ConfigError, match=r"leave nothing to train\. .*llmgym eval"):
        run(read([], settings), loggers=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("zero", "stays"),
    [
        ({}, False),
        ({"stage": 1}, True),
        ({"stage": 2}, False),
        ({"stage": 2, "offload": "optimizer"}, True),
        ({"stage": 3}, False),
        ({"stage": 3, "offload": "params"}, True),
    ],
)
def test_on_a_gpu_moments_leave_where_the_backend_can_move_them(zero, stays):
    words = {f"backend.zero.{name}": value for name, value in zero.items()}
    words |= {"backend.name": "deepspeed"} if zero else {}
    said = without_effect(read([], {**words, "backend.offload_between_phases": True}), has_gpu=True)
    assert [one.split()[0] for one in said] == ["backend.offload_between_phases"] * stays


@pytest.mark.parametrize(
    ("dtype", "has_gpu", "cpu_has_bf16", "count"),
    [
        ("bfloat16", False, False, 1),
        ("bfloat16", True, False, 0),
        ("bfloat16", False, True, 0),
        ("auto", False, False, 0),
        ("float32", False, False, 0),
    ],
)
def test_a_type_that_the_cpu_emulates_is_named_with_the_one_to_take(
    dtype, has_gpu, cpu_has_bf16, count
):
    messages = emulated(
        read([], {"model.dtype": dtype}), has_gpu=has_gpu, cpu_has_bf16=cpu_has_bf16
    )
    assert len(messages) == count
    assert all("--model.dtype auto" in message for message in messages)
