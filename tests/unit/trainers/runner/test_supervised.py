"""The supervised stage alone, and before PPO."""

import pytest

from tests import tiny
from trainers.config_files import read
from trainers.errors import ConfigError
from trainers.runner import run

SHORT = {
    "run.name": "a",
    "model.context": 64,
    "data.num_examples": 12,
    "sft.num_epochs": 1,
    "sft.batch_size": 6,
    "ppo.num_iterations": 0,
    "log.wandb.enabled": False,
}


def test_learning_alone_needs_no_room_for_the_responses_of_a_later_run(tmp_path):
    config = read([], {**SHORT, "run.dir": str(tmp_path)})
    assert config.generation.max_prompt_tokens + config.generation.max_new_tokens > 64
    folder = run(config, loggers=[]).run_dir
    assert (folder / "model" / "model.safetensors").is_file()


def test_a_context_too_short_for_ppo_is_refused_before_anything_is_learned(tmp_path):
    config = read([], {**SHORT, "run.dir": str(tmp_path), "ppo.num_iterations": 1})
    with pytest.raises(ConfigError, match="320 exceeds the model's context of 64 tokens"):
        run(config, loggers=[])
    assert not (tmp_path / "a" / "base").exists()


def test_evaluation_changes_no_weight_and_no_metric_of_training(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    found = []
    for name, every, tasks in (("with", 1, 8), ("without", 0, 0)):
        changes = {"run.name": name, "eval.every": every, "eval.num_tasks": tasks}
        config = tiny.run_settings(model, tmp_path, **changes)
        result = run(config, reward=tiny.letters, loggers=[])
        assert len(result.evaluations) == (3 if tasks else 0)
        figures = {
            key: value
            for key, value in result.metrics.items()
            if not key.startswith(("timing_s/", "perf/"))
        }
        files = [result.run_dir / part / "model.safetensors" for part in ("model", "critic")]
        found.append((figures, [file.read_bytes() for file in files]))
    (figures, weights), (others, expected) = found
    assert weights == expected
    assert figures == others
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != weights[0]
