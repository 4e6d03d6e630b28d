"""A damaged copy of a model wins most of its distance back, by each method, paid by nobody else."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from tests.learning.reversing import letters_tokenizer, settings
from tests.learning.seeds import SEEDS
from tests.slow import slow
from trainers.loggers.jsonl import JsonlLogger
from trainers.run_dir.record import lines
from trainers.runner.run import run

DAMAGE = 0.15
"""Standard deviation of what is added to weights, whose own is 0.3."""
TAUGHT = {
    "ppo.num_iterations": 16,
    "ppo.num_prompts": 128,
    "ppo.samples_per_prompt": 1,
    "ppo.num_epochs": 2,
    "ppo.learning_rate": 2.0e-3,
    "ppo.advantage": "teacher",
    "ppo.critic": "none",
    "ppo.entropy_coef": 0.0,
    "ppo.missing_eos_penalty": None,
    "eval.num_tasks": 0,
}


def damage(folder, seed):
    """Write a teacher that is sure of its answers, and the student: the same weights and noise."""
    model = GPT2LMHeadModel.from_pretrained(folder / "random")
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(3.0)
    model.save_pretrained(folder / "teacher")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.add_(DAMAGE * torch.randn(weight.shape, generator=rng))
    model.save_pretrained(folder / "student")
    for name in ("teacher", "student"):
        letters_tokenizer().save_pretrained(folder / name)


@pytest.mark.parametrize("method", ["ppo", slow("gkd"), slow("sft_kd")])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_student_wins_its_distance_back(tmp_path, method, seed):
    paths = {
        "model.path": str(tmp_path / "student"),
        "distill.teacher": str(tmp_path / "teacher"),
        "distill.method": method,
    }
    config = settings(tmp_path, seed, **TAUGHT, **paths)
    damage(tmp_path, seed)
    result = run(config, reward=lambda response: 0.0, loggers=[JsonlLogger()])
    made = [line["distill/reverse_kl"] for line in lines(result.run_dir / "metrics.jsonl")]
    assert made[0] > 0.2, "there is a distance to win back"
    assert made[-1] < 0.4 * made[0]
