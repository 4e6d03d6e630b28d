"""How much context the supervised stage asks for, alone and before PPO."""

import pytest

from trainers import cli
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


def test_what_the_end_of_such_a_run_offers_can_be_typed(tmp_path, capsys):
    folder = run(read([], {**SHORT, "run.dir": str(tmp_path)}), loggers=[]).run_dir
    assert cli.main(["eval", str(folder), "--n", "2"]) == 0
    assert "2 tasks" in capsys.readouterr().out
