"""eval, play and export on a run folder with tiny models."""

import io
import os
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.cli import export
from trainers.cli import main as cli
from trainers.config.files import dump, read
from trainers.errors import ConfigError
from trainers.export.folders import export_policy
from trainers.generation import transformers as generation
from trainers.generation.base import Sampling
from trainers.inference.loading import load_for_inference
from trainers.inference.targets import newest_run, target_of
from trainers.models.loading import load_chat, load_tokenizer

SETTINGS = {
    "run.name": "a",
    "eval.num_tasks": 4,
    "generation.max_new_tokens": 4,
    "generation.max_prompt_tokens": 24,
    "log.wandb.enabled": False,
}


def llama(chat, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(chat.tokenizer), max_position_embeddings=64, initializer_range=0.3,
            **sizes, **heads,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Make a folder as a run leaves it, with a model and the base it started from."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    folder.mkdir()
    config = read([], SETTINGS)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    tokenizer = load_tokenizer(config, ["12 + 34 = 46", "7 + 8 = 15"])
    chat = load_chat(config, tokenizer, env="llmgym/Arithmetic-v0")
    for name, seed in (("base", 0), ("model", 1)):
        export_policy(folder / name, llama(chat, seed), chat, {"run": "a"})
    return folder


@pytest.fixture
def run_dir(finished, tmp_path, monkeypatch):
    """Work where `runs/a` is that run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/a")
    return "runs/a"


def test_eval_pairs_a_run_with_its_base(run_dir, capsys):
    assert cli.main(["eval", run_dir, "--against", "base", "--n", "3", "--debug"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Held-out llmgym/Arithmetic-v0: 3 tasks, greedy, 95 % interval"
    assert lines[1].startswith("  runs/a/model  ")
    assert lines[2].startswith("  runs/a/base   ")
    assert lines[3].startswith("  paired difference ")
    assert sum(line.startswith("  before ") for line in lines) == 3


def test_eval_draws_at_a_temperature(run_dir, capsys):
    assert cli.main(["eval", "--temperature", "0.7", "--top-p", "0.9", "--top_k", "5"]) == 0
    assert "4 tasks, temperature 0.7, 95 % interval" in capsys.readouterr().out
    assert cli.main(["eval", "--top-p", "0.9"]) == 2
    assert "give a --temperature" in capsys.readouterr().err


def test_play_reads_a_pipe_to_its_end(run_dir, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n1 + 1 =\n" + "word " * 99))
    assert cli.main(["play", run_dir, "--base", "--debug"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("prompt   ") == 2
    assert printed.count("reward ") == 4
    assert printed.count("\nbase     ") == 4
    assert "tokens, too many for it)" in printed
    assert "> " not in printed


def test_export_proves_its_copy(run_dir, capsys):
    assert cli.main(["export", "--out", "out/model", "--debug"]) == 0
    assert capsys.readouterr().out.startswith(
        "out/model: the same model, checked with plain transformers: log-probabilities "
    )
    assert cli.main(["export", "--out", "out/model"]) == 2
    assert "out/model exists." in capsys.readouterr().err
    assert sorted(os.listdir("out")) == ["model"]


def test_export_to_a_place_that_cannot_be_written_says_so(run_dir, capsys):
    assert cli.main(["export", "--out", f"{run_dir}/config.yaml/x"]) == 1
    said = capsys.readouterr().err
    assert f"\nCheckpointError: cannot write {run_dir}/config.yaml/x: " in f"\n{said}"
    assert said.endswith("Name another folder: --out DIR\n")


def test_export_sees_other_weights(run_dir):
    assert export.max_logprob_difference(f"{run_dir}/model", f"{run_dir}/base") > 0.1


def test_export_of_a_wrong_copy_fails(run_dir, capsys, monkeypatch):
    monkeypatch.setattr(export, "copied", lambda source, out: f"{run_dir}/base")
    assert cli.main(["export", "--out", "other"]) == 1
    assert "does not compute what runs/a/model does" in capsys.readouterr().err


def test_a_target_is_a_run_a_folder_in_one_or_a_model(run_dir, tmp_path):
    assert target_of(None).model == "runs/a/model"
    inside = target_of("runs/a/base")
    assert (inside.model, inside.config.run.name) == ("runs/a/base", "a")
    assert target_of("runs/a", "base").model == "runs/a/base"
    hub = target_of("someone/model")
    assert (hub.model, hub.run_dir) == ("someone/model", None)
    with pytest.raises(ConfigError, match="has no best/ yet"):
        target_of("runs/a", "best")
    with pytest.raises(ConfigError, match="neither a run folder nor a model folder"):
        target_of("runs/b")


def test_the_base_of_a_run_is_read_by_the_tokenizer_of_its_settings(run_dir, tmp_path):
    shutil.move(f"{run_dir}/base", "given")
    template = tmp_path / "shout.jinja"
    template.write_text("{{ messages[0].content }}!")
    changes = {"model.path": "given", "tokenizer.path": f"{run_dir}/model"}
    config = read([], {**SETTINGS, **changes, "tokenizer.chat_template": str(template)})
    with open(f"{run_dir}/config.yaml", "w", encoding="utf-8") as stream:
        stream.write(dump(config))
    spoken = load_for_inference(target_of(run_dir, "base"), Sampling(greedy=True)).chat
    assert spoken.decode(spoken.prompt_ids([{"role": "user", "content": "a"}])) == "a!"
    own = load_for_inference(target_of(run_dir), Sampling(greedy=True)).chat
    assert own.tokenizer.chat_template != template.read_text()


def test_a_model_that_is_looked_at_computes_in_the_type_it_was_trained_in(run_dir, monkeypatch):
    seen = []

    def make(parts):
        seen.append(parts.autocast)
        return plain(parts)

    plain = generation.make_generator
    monkeypatch.setattr(generation, "make_generator", make)
    for dtype in ("float32", "bfloat16"):
        config = read([], {**SETTINGS, "model.dtype": dtype})
        with open(f"{run_dir}/config.yaml", "w", encoding="utf-8") as stream:
            stream.write(dump(config))
        assert cli.main(["eval", run_dir, "--n", "1"]) == 0
        assert seen.pop() == (None if dtype == "float32" else torch.bfloat16)


def test_without_a_name_the_newest_run_is_meant(run_dir, tmp_path, monkeypatch):
    shutil.copytree("runs/a", "runs/b")
    os.utime("runs/b/config.yaml", (1, 1))
    assert str(newest_run()) == "runs/a"
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match="llmgym train quickstart"):
        newest_run()


def test_play_refuses_a_policy_that_acts_on_numbers(run_dir, capsys):
    shutil.copytree("runs/a/model", "runs/c/model")
    config = read([], {"run.kind": "control", "envs.0.id": "CartPole-v1"})
    with open("runs/c/config.yaml", "w", encoding="utf-8") as stream:
        stream.write(dump(config))
    assert cli.main(["play", "runs/c"]) == 2
    assert "acts on numbers, not on text.\nllmgym eval" in capsys.readouterr().err
