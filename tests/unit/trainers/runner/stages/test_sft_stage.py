"""The supervised stage as a run: alone and before PPO, with prompts and without."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmgym.vector import LLMVectorEnv
from trainers.cli import main as cli
from trainers.config.files import read
from trainers.distributed.collectives import World
from trainers.errors import ConfigError
from trainers.run_dir.record import read_status
from trainers.runner import run as runner
from trainers.runner.assemble import check_shares
from trainers.runner.run import run

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


def test_rows_without_prompts_teach_what_plain_transformers_then_says(tmp_path):
    (tmp_path / "rows.tsv").write_text("red fox\t1\tx\n" * 12)
    changes = {
        "run.dir": str(tmp_path),
        "data.path": str(tmp_path / "rows.tsv"),
        "data.columns": ["text", "labels", "id"],
        "data.response_column": "text",
        "sft.num_epochs": 15,
        "sft.learning_rate": 1e-3,
    }
    folder = run(read([], SHORT | changes), loggers=[]).run_dir / "model"
    log = (folder.parent / "logs" / "attempt_1" / "rank_0.log").read_text("utf-8")
    assert log.count("12 rows: too few to learn from") == 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.convert_tokens_to_ids("<|assistant|>")]])
    said = model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == "red fox"
    assert said[-1] == tokenizer.eos_token_id
