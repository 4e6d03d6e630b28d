"""How much context the supervised stage asks for, alone and before PPO."""

import pytest

from llmgym.vector import LLMVectorEnv
from trainers import cli, runner
from trainers.config_files import read
from trainers.distributed import World
from trainers.errors import ConfigError
from trainers.run_folder import read_status
from trainers.runner import run
from trainers.runner.assemble import check_shares

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


def test_a_checkpoint_of_the_stage_is_refused_once_its_end_has_come(tmp_path):
    config = read([], {**SHORT, "run.dir": str(tmp_path)})
    folder = run(config, loggers=[]).run_dir
    with pytest.raises(ConfigError, match=r"base was made when .* bare --resume"):
        run(config, loggers=[], resume=folder / "checkpoints" / "sft_000002")


def test_learning_alone_asks_for_no_shares_of_ppo_and_closes_its_environment(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(LLMVectorEnv, "close_extras", lambda self: closed.append(self))
    config = read([], {**SHORT, "run.dir": str(tmp_path)})
    check_shares(config, World(size=3))
    run(config, loggers=[])
    assert len(closed) == 1


def test_a_picture_that_cannot_be_drawn_fails_no_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr(runner, "draw", full)
    folder = run(read([], {**SHORT, "run.dir": str(tmp_path)}), loggers=[]).run_dir
    assert read_status(folder)["status"] == "finished"


def test_what_the_end_of_such_a_run_offers_can_be_typed(tmp_path, capsys):
    folder = run(read([], {**SHORT, "run.dir": str(tmp_path)}), loggers=[]).run_dir
    assert cli.main(["eval", str(folder), "--n", "2"]) == 0
    assert "2 tasks" in capsys.readouterr().out
