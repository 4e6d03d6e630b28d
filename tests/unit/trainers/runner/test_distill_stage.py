"""The stage `distill`: three methods, what is refused before weights load, limits, and a resume."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.resume.trainee import differences, left_behind
from trainers.collect.rollout import TextCollector
from trainers.config.files import preset, read
from trainers.errors import ConfigError
from trainers.loggers.jsonl import JsonlLogger
from trainers.models.chat import train_tokenizer
from trainers.run_dir.record import lines, read_status
from trainers.runner import teachers
from trainers.runner.recover import recover
from trainers.runner.run import run

METHODS = ("ppo", "gkd", "sft_kd")
DISTILL = {
    "ppo.critic": "none",
    "ppo.advantage": "teacher",
    "ppo.kl_placement": "none",
    "ppo.samples_per_prompt": 1,
    "ppo.num_prompts": 8,
}


def save(folder, tokenizer, *, seed, **changes):
    """Save a Llama with a tokenizer; return the folder."""
    model = tiny.llama(seed=seed, vocab_size=max(tokenizer.get_vocab().values()) + 1, **changes)
    for held in (model.config, model.generation_config):
        held.bos_token_id = held.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a student and a teacher of another width."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), train_tokenizer(["12 + 34 = 46"], 280)
    student = save(folder / "student", tokenizer, seed=1)
    teacher = save(folder / "teacher", tokenizer, seed=2, hidden_size=48, initializer_range=0.3)
    return student, teacher


def settings(models, folder, method="ppo", **changes):
    """Settings of a distillation of a second."""
    student, teacher = models
    taught = {"distill.teacher": teacher, "distill.method": method}
    return tiny.run_settings(student, folder, **{**DISTILL, **taught, **changes})


def logged(folder):
    """The figures of each iteration."""
    made = lines(folder / "a" / "metrics.jsonl")
    return [line for line in made if line.get("train/global_step") and "eval/score" not in line]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_brings_the_student_nearer_to_its_teacher(models, tmp_path, method):
    changes = {
        "ppo.num_iterations": 14,
        "ppo.num_prompts": 48,
        "ppo.learning_rate": 3e-3,
        "eval.num_tasks": 4,
    }
    run(settings(models, tmp_path, method, **changes), loggers=[JsonlLogger()])
    figures = logged(tmp_path)
    first, last = (figures[at]["distill/forward_kl"] for at in (0, -1))
    assert last < {"ppo": 0.95, "gkd": 0.8, "sft_kd": 0.8}[method] * first
    assert ("loss/distill" in figures[0]) == (method != "ppo")
    assert ("distill/log_ratio" in figures[0]) == (method == "ppo")
    assert (tmp_path / "a" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "a" / "critic").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    assert model.config.hidden_size == 32, "what is exported is the student"


@pytest.mark.parametrize(("method", "writer"), [("gkd", 0), ("sft_kd", 1), ("ppo", 0)])
def test_what_is_learned_from_is_the_text_of(models, tmp_path, method, writer):
    rollouts = []

    def collected(self, actor, iteration):
        rollouts.append(collect(self, actor, iteration))
        return rollouts[-1]

    collect = TextCollector.collect
    with mock.patch.object(TextCollector, "collect", collected):
        run(settings(models, tmp_path, method, **{"ppo.num_iterations": 1}), loggers=())
    (made,) = rollouts
    model = AutoModelForCausalLM.from_pretrained(models[writer])
    mask = made.response_mask
    with torch.no_grad():
        logits = model(
            input_ids=made.inputs.tokens,
            attention_mask=made.inputs.attention_mask.long(),
            position_ids=(made.inputs.attention_mask.cumsum(1) - 1).clamp(min=0),
        ).logits
    before = logits[:, made.inputs.num_prompt - 1 : -1].log_softmax(-1)
    expected = before.gather(-1, made.inputs.actions[..., None]).squeeze(-1)
    torch.testing.assert_close(made.logprobs[mask], expected[mask], rtol=1e-4, atol=1e-4)
    assert (made.teacher_rewards is not None) == (method == "ppo")


@pytest.mark.parametrize("method", METHODS)
def test_n_and_n_are_2n_to_the_last_bit(models, tmp_path, method):
    changes = {"eval.num_tasks": 4, "eval.every": 1, "checkpoint.every": 1}
    for part, counts in (("whole", (2,)), ("halves", (1, 2))):
        for count in counts:
            config = settings(models, tmp_path / part, method, **changes)
            config = replace(config, ppo=replace(config.ppo, num_iterations=count))
            run(config, resume=count > counts[0], loggers=[JsonlLogger()])
    ends = [left_behind(tmp_path / part) for part in ("whole", "halves")]
    seconds = [end["own"]["limits"].pop("seconds") for end in ends]
    assert min(seconds) > 0, "time is counted, and is all that differs"
    assert differences(*ends) == []


def test_a_run_ends_after_the_iteration_in_which_its_tokens_are_reached(models, tmp_path):
    changes = {"distill.max_tokens": 50, "ppo.num_iterations": 9, "eval.num_tasks": 4}
    run(settings(models, tmp_path, **changes), loggers=[JsonlLogger()])
    figures = logged(tmp_path)
    assert figures[-1]["train/tokens"] >= 50 > figures[-2]["train/tokens"]
    assert read_status(tmp_path / "a")["status"] == "finished"
    evaluated = [line for line in lines(tmp_path / "a" / "metrics.jsonl") if "eval/score" in line]
    assert evaluated[-1]["train/global_step"] == len(figures), "its end is evaluated"
    run(settings(models, tmp_path, **changes), resume=True, loggers=[JsonlLogger()])
    assert len(logged(tmp_path)) == len(figures), "a start after the end learns nothing"
    more = changes | {"distill.max_tokens": None, "ppo.num_iterations": len(figures) + 1}
    run(settings(models, tmp_path, **more), resume=True, loggers=[JsonlLogger()])
    assert len(logged(tmp_path)) == len(figures) + 1


def test_minutes_are_counted_over_all_starts(models, tmp_path):
    changes = {"distill.max_minutes": 1e-5, "ppo.num_iterations": 9}
    run(settings(models, tmp_path, **changes), loggers=[JsonlLogger()])
    assert len(logged(tmp_path)) == 1


def test_another_vocabulary_is_refused_before_weights_load(models, tmp_path):
    other = save(tmp_path / "other", train_tokenizer(["abc abd bcd"], 300), seed=0)
    with (
        mock.patch.object(teachers, "load_causal_lm", side_effect=AssertionError),
        mock.patch("trainers.models.loading.load_causal_lm", side_effect=AssertionError),
        pytest.raises(ConfigError, match="has another vocabulary than the student") as refusal,
    ):
        run(settings((models[0], other), tmp_path), loggers=())
    assert "differ, such as" in str(refusal.value)


def test_one_vocabulary_that_is_padded_otherwise_needs_its_padding_masked(models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    size = len(tokenizer) + 8
    padded = tiny.llama(seed=2, vocab_size=size)
    padded.config.bos_token_id = padded.config.eos_token_id = None
    padded.generation_config.bos_token_id = padded.generation_config.eos_token_id = None
    padded.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    pair = (models[0], str(tmp_path / "padded"))
    with pytest.raises(ConfigError, match=r"embeds \d+ tokens and .*mask_unknown true"):
        run(settings(pair, tmp_path), loggers=())
    run(settings(pair, tmp_path, **{"generation.mask_unknown": True}), loggers=[JsonlLogger()])
    assert all(0 <= line["distill/forward_kl"] < 9 for line in logged(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.method": "gkd", "ppo.advantage": "gae", "ppo.critic": "separate"}, "no reward"),
        ({"distill.method": "gkd", "ppo.kl_placement": "loss"}, "no reference"),
        ({"ppo.kl_placement": "reward"}, "which ppo.advantage teacher does not read"),
        ({"distill.teacher": None}, "distill.teacher is not set"),
        ({"run.kind": "control", "model.path": None}, "no tokens for distill.teacher"),
        ({"ppo.critic": "shared"}, "ppo.advantage teacher reads no critic"),
    ],
)
def test_settings_that_a_teacher_leaves_nothing_to_do_for_are_refused(
    models, tmp_path, changes, message
):
    with pytest.raises(ConfigError, match=message):
        settings(models, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation.ahead": 1}, "--generation.ahead 0"),
        ({"distill.method": "sft_kd", "generation.engine": "speculative"}, "has the teacher write"),
        ({"distill.teacher": "nowhere/at-all"}, "nowhere/at-all"),
        ({"model.path": None}, "Name one with --model.path STUDENT"),
        ({"generation.max_new_tokens": 60}, "context of 64 tokens"),
    ],
)
def test_what_a_teacher_cannot_do_is_refused_before_weights_load(
    models, tmp_path, changes, message
):
    with (
        mock.patch("trainers.models.loading.load_causal_lm", side_effect=AssertionError),
        pytest.raises(ConfigError, match=message),
    ):
        run(settings(models, tmp_path, **changes), loggers=())


def test_one_call_distills_and_returns_the_folder(models, tmp_path):
    overrides = {
        "ppo.num_iterations": 2,
        "ppo.num_prompts": 8,
        "ppo.num_minibatches": 1,
        "generation.max_new_tokens": 4,
        "eval.num_tasks": 0,
    }
    folder = recover(
        *models, method="sft", name="b", run_dir=tmp_path, overrides=overrides, loggers=()
    )
    assert folder == tmp_path / "b" / "model"
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 32
    assert read([preset("distill")]).distill.teacher is not None
