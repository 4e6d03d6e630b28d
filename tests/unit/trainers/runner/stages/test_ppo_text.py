"""A text run as a whole."""

import shutil

import pytest

from tests import tiny
from trainers.errors import ConfigError
from trainers.runner.run import run


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


def test_a_run_resumed_at_its_end_is_exported(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    config = tiny.run_settings(model, tmp_path)
    exported = run(config, reward=tiny.letters, loggers=[]).run_dir / "model"
    wanted = (exported / "model.safetensors").read_bytes()
    shutil.rmtree(exported)
    run(config, reward=tiny.letters, loggers=[], resume=True)
    assert (exported / "model.safetensors").read_bytes() == wanted
    shorter = tiny.run_settings(model, tmp_path, **{"ppo.num_iterations": 1})
    with pytest.raises(ConfigError, match="has made 2 iterations"):
        run(shorter, reward=tiny.letters, loggers=[], resume=True)


def test_a_run_is_called_by_the_environment_it_is_given(tmp_path):
    config = tiny.run_settings(tiny.save_model(tmp_path / "model"), tmp_path)
    result = run(config, env="llmgym/ReverseTokens-v0", reward=tiny.letters, loggers=[])
    assert "id: llmgym/ReverseTokens-v0" in (result.run_dir / "config.yaml").read_text("utf-8")
    assert {one.env for _, found in result.evaluations for one in found} <= {
        "llmgym/ReverseTokens-v0"
    }
