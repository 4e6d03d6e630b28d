"""Distillation at two ranks, in plain torch and on DeepSpeed, is distillation in one process."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.distributed.test_runs_at_two_ranks import trained
from tests.distributed.test_zero_runs import settings
from tests.unit.trainers.runner.test_distill_stage import save
from trainers.models.chat import train_tokenizer
from trainers.run_dir.record import lines

pytestmark = [pytest.mark.timeout(600)]
FIGURES = ("distill/forward_kl", "distill/reverse_kl", "policy/grad_norm", "objective/scores")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a student and a teacher."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), train_tokenizer(["12 + 34 = 46"], 280)
    student = save(folder / "student", tokenizer, seed=1)
    return student, save(folder / "teacher", tokenizer, seed=2, hidden_size=48)


def taught(teacher, method):
    """The changes that make a run a distillation."""
    return {
        "distill.teacher": teacher,
        "distill.method": method,
        "distill.max_minutes": 99.0,
        "ppo.critic": "none",
        "ppo.advantage": "teacher",
        "ppo.kl_placement": "none",
        "ppo.kl_controller": "fixed",
        "ppo.reward_normalize": "none",
        "backend.micro_batch_tokens": 60,
    }


def figures(folder):
    """What each iteration logged of the teacher."""
    made = lines(Path(folder) / "a" / "metrics.jsonl")
    return [[line[name] for name in FIGURES] for line in made if FIGURES[0] in line]


def assert_two_ranks_are_one_process(models, folder, method, changes):
    student, teacher = models
    more = taught(teacher, method)
    _, expected = trained(student, folder / "alone", 2, False, more)
    ranks = run_ranks(
        trained, student, str(folder / "ranks"), 2, False, {**more, **changes}, timeout=500
    )
    rows = [row for _, rollouts in ranks for row in rollouts[0]]
    assert [ids for _, ids, _ in rows] == [ids for _, ids, _ in expected[0]]
    one, other = (figures(folder / part) for part in ("alone", "ranks"))
    assert len(one) == 2
    for left, right in zip(one, other, strict=True):
        assert right == pytest.approx(left, rel=1e-3, abs=1e-5)
    weights = (
        load_file(folder / part / "a" / "model" / "model.safetensors")
        for part in ("alone", "ranks")
    )
    assert tiny.difference(*weights) < 1e-4


@pytest.mark.parametrize("method", ["ppo", "gkd", "sft_kd"])
def test_two_ranks_learn_what_one_process_learns(models, tmp_path, method):
    assert_two_ranks_are_one_process(models, tmp_path, method, {})


@pytest.mark.deepspeed
@pytest.mark.parametrize("method", ["ppo", "gkd"])
@pytest.mark.parametrize("place", ["2", "3, a copy writes"])
def test_a_teacher_is_sharded_as_the_reference_is(models, tmp_path, method, place):
    tmp_path.joinpath("zero").mkdir()
    changes = settings(place, tmp_path / "zero")
    assert_two_ranks_are_one_process(models, tmp_path, method, changes)


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("place", ["3, shards write", "3, offloaded shards write"])
@pytest.mark.parametrize("method", ["ppo", "gkd", "sft_kd"])
def test_a_teacher_is_gathered_layer_by_layer(models, tmp_path, method, place):
    tmp_path.joinpath("zero").mkdir()
    changes = settings(place, tmp_path / "zero")
    assert_two_ranks_are_one_process(models, tmp_path, method, changes)
