"""A place to type commands in, with a tiny model, prompts and rewards, as a user has them."""

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.cli import main as cli
from trainers.config.files import read
from trainers.distributed.collectives import World
from trainers.models import loading
from trainers.models.chat import train_tokenizer
from trainers.run_dir.folder import open_run

SMALL = {
    "--ppo.num-iterations": 1,
    "--ppo.num-prompts": 2,
    "--ppo.samples-per-prompt": 2,
    "--ppo.num-epochs": 1,
    "--generation.max-new-tokens": 4,
    "--generation.max-prompt-tokens": 60,
    "--eval.num-tasks": 0,
    "--log.wandb.enabled": "false",
    "--envs.0.kwargs.path": "prompts.jsonl",
    "--model.path": "model",
    "--reward": "my_reward.py:good",
    "--name": "a",
}
REWARDS = """
def good(prompt, response):
    return sum(map(ord, response)) % 7 / 7
"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command answered.

    Attributes:
        code: it exited with.
        said: on stderr.
        shown: on stdout.
    """

    code: int
    said: str
    shown: str


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """A folder with a Llama of one layer, its tokenizer and its chat template."""
    folder = tmp_path_factory.mktemp("models") / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = LlamaConfig(vocab_size=300, max_position_embeddings=128, **sizes, **heads, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    train_tokenizer(["Name a color."], 300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of that model."""
    return train_tokenizer(["Name a color."], 300)


@pytest.fixture
def place(tmp_path, monkeypatch, saved_model):
    """The folder that commands are typed in: model, prompts.jsonl, my_reward.py."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(saved_model, target_is_directory=True)
    write_rows("prompts.jsonl", [{"prompt": f"Name {n}", "word": str(n)} for n in range(12)])
    Path("my_reward.py").write_text(REWARDS, encoding="utf-8")
    return tmp_path


def write_rows(file, rows):
    """Write a JSONL file."""
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def typed(place, capsys, monkeypatch):
    """Type `llmgym train prompts` with a few settings changed; None leaves one out."""
    monkeypatch.delenv("RANK", raising=False)
    loggers = [logging.getLogger(name) for name in ("llmgym", "trainers")]
    before = [(one, one.level, one.propagate, list(one.handlers)) for one in loggers]

    def command(changes=(), *words, verb=("train", "prompts")):
        given = (SMALL if verb == ("train", "prompts") else {}) | dict(changes)
        pairs = [[name, str(value)] for name, value in given.items() if value is not None]
        code = cli.main([*verb, *words, *(word for pair in pairs for word in pair)])
        printed = capsys.readouterr()
        return Answer(code=code, said=printed.err, shown=printed.out)

    with warnings.catch_warnings():
        yield command
    for one, level, propagate, handlers in before:
        one.setLevel(level)
        one.propagate, one.handlers[:] = propagate, handlers


@pytest.fixture
def refused(typed, monkeypatch):
    """Type a command that must be refused: in words, before weights load, to be typed again."""

    def command(*changes, code=2, **given):
        before = {*Path("runs").glob("*")}
        with monkeypatch.context() as patch:
            for where, name in (
                (loading.AutoModelForCausalLM, "from_pretrained"),
                (loading, "fresh_llama"),
            ):
                patch.setattr(where, name, _never)
            answer = typed(*changes, **given)
        assert answer.code == code, answer.said
        assert "Traceback" not in answer.said
        for run in {*Path("runs").glob("*")} - before:
            assert_can_start(run)
        return answer.said

    return command


def _never(*_args, **_kwargs):
    raise AssertionError("weights were loaded before the mistake was found")


def assert_can_start(run):
    """Check that what was left behind does not stand in the way of the corrected command."""
    config = read([], {"run.name": run.name, "run.dir": str(run.parent)})
    open_run(config, resume=False, clean=False, command=(), world=World()).close()
