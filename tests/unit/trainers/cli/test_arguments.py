"""The arguments of train and sft: traps, layers, and the words of each refusal."""

from pathlib import Path

import pytest

from trainers.cli.arguments import OPTIONS, SHORT, Launch, read_arguments
from trainers.cli.train import config_of, help_text
from trainers.config import Config
from trainers.errors import ConfigError


def config(*argv, verb="train"):
    return config_of(read_arguments(argv, verb), verb)


def refused(*argv, verb="train"):
    with pytest.raises(ConfigError) as caught:
        config(*argv, verb=verb)
    return str(caught.value)


def test_nothing_typed_is_the_default_preset():
    assert read_arguments([]) == Launch()
    assert config() == Config()


def test_preset_is_under_files_which_are_under_the_command_line(tmp_path):
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("ppo: {gamma: 0.1, num_epochs: 7, gae_lambda: 0.1}\n")
    two.write_text("ppo: {gae_lambda: 0.2, num_epochs: 8}\n")
    got = config("cartpole", "-c", str(one), f"--config={two}", "--ppo.num-epochs", "9")
    assert got.run.kind == "control"
    assert (got.ppo.gamma, got.ppo.gae_lambda, got.ppo.num_epochs) == (0.1, 0.2, 9)


def test_a_config_option_does_not_swallow_what_follows():
    launch = read_arguments(["cartpole", "-c", "a.yaml", "-c", "b.yaml", "--clean"])
    assert launch.preset == "cartpole"
    assert launch.files == (Path("a.yaml"), Path("b.yaml"))
    assert launch.clean


def test_the_preset_must_come_first():
    assert refused("--ppo.num-epochs", "2", "cartpole") == (
        'the preset "cartpole" must come first.\nllmgym train cartpole --ppo.num-epochs 2'
    )
    assert "must come first" in refused("--clean", "cartpole")
    assert "must come first" in refused("--resume", "cartpole")
    assert '"nonsense" belongs to no option.' in refused("--clean", "nonsense")
    assert '"pendulum" must come first.' in refused("cartpole", "pendulum")


def test_a_file_in_the_preset_s_place_is_told_its_option():
    assert "A file is given with -c my.yaml" in refused("my.yaml")


@pytest.mark.parametrize("word", ["--local_rank=3", "--local-rank=3"])
def test_the_rank_that_a_launcher_adds_is_ignored(word):
    assert read_arguments(["cartpole", word]) == Launch(preset="cartpole")
    assert read_arguments(["cartpole", *word.split("=")]) == Launch(preset="cartpole")
    assert read_arguments([word, "cartpole"]) == Launch(preset="cartpole")


def test_short_forms_are_settings():
    got = config("--data", "p.jsonl", "--name", "a", "--reward", "my.py:score")
    assert (got.data.path, got.run.name, got.rewards[0].function) == ("p.jsonl", "a", "my.py:score")


def test_a_reward_is_a_function_a_folder_of_a_model_or_a_name(tmp_path):
    folder = str(tmp_path)
    for value in ("my.py:score", "my.py", folder, "exact"):
        source = {folder: "model", "exact": "name"}.get(value, "function")
        assert config("--reward", value).rewards[0].source == {source: value}
    typed = ("--backend.name", "deepspeed", "--deepspeed_config", "ds.json")
    assert config(*typed).backend.zero.config == "ds.json"
    assert config("--nodes", "1", "--gpus", "2").backend.gpus == 2
    assert SHORT.keys() == {"data", "name", "reward", "deepspeed_config", "nodes", "gpus"}


def test_dashes_and_underscores_are_one():
    assert config("--ppo.num_epochs", "2") == config("--ppo.num-epochs=2")


def test_arguments_of_environments_need_not_be_in_a_file():
    got = config(
        "--envs.0.kwargs.path", "p.jsonl", "--envs.0.kwargs.level", "3", "--eval.kwargs.split", "x",
        "--rewards.0.kwargs.strict", "true", "--rewards.0.name", "math.boxed",
    )  # fmt: skip
    assert got.envs[0].kwargs == {"path": "p.jsonl", "level": 3}
    assert got.eval.kwargs == {"split": "x"}
    assert (got.rewards[0].kwargs, got.rewards[0].name) == ({"strict": True}, "math.boxed")


def test_values_take_as_many_words_as_their_type():
    got = config(
        "--generation.eos-token-ids", "2", "32007", "--model.hidden-sizes", "8",
        "--backend.gradient-checkpointing", "--ppo.truncation-penalty", "-1.5",
        "--ppo.adam-betas", "0.8", "0.9", "--ppo.whiten-advantages", "false",
        "--ppo.max-grad-norm", "null",
    )  # fmt: skip
    assert got.generation.eos_token_ids == [2, 32007]
    assert got.model.hidden_sizes == [8]
    assert got.backend.gradient_checkpointing
    assert got.ppo.truncation_penalty == -1.5
    assert got.ppo.adam_betas == (0.8, 0.9)
    assert not got.ppo.whiten_advantages
    assert got.ppo.max_grad_norm is None


def test_resume_takes_a_checkpoint_or_nothing():
    assert read_arguments(["--resume"]).resume is True
    assert read_arguments(["--resume", "--clean"]).resume is True
    assert read_arguments(["--resume", "runs/a/checkpoints/ppo_000010"]).resume == (
        "runs/a/checkpoints/ppo_000010"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--lr", "3"], "lr is not a setting. Did you mean ppo.learning_rate?"),
        (["--epochs", "3"], "epochs is not a setting. Did you mean ppo.num_epochs?"),
        (["--batch-size", "3"], "batch_size is not a setting. Did you mean ppo.num_prompts?"),
        (["--seed", "3"], "seed is not a setting. Did you mean run.seed?"),
        (["--model", "gpt2"], "Did you mean model.path?"),
        (["--ppo.clp-low", "3"], "ppo.clp_low is not a setting. Did you mean ppo.clip_low?"),
        (["--ppo.gamma"], "--ppo.gamma needs a value.\nllmgym schema --field ppo.gamma"),
        (["--data"], "--data needs a value."),
        (["-c"], "-c needs a value."),
        (["-x"], "-x is not an option."),
        (["--ppo.num-epochs", "two"], 'must be a whole number, got the text "two"'),
        (["--run.seed", "3e-1x"], "run.seed must be a whole number"),
        (["--envs.0.kwargs.a", "["], "put it in quotes"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(argv, words):
    assert words in refused(*argv)


def test_sft_leaves_ppo_out_and_trains_a_fresh_model_at_its_rate():
    got = config("--model.preset", "small", "--data", "p.jsonl", verb="sft")
    assert got.ppo.num_iterations == 0
    assert got.sft.num_epochs == 3
    assert got.sft.learning_rate == 1.0e-3
    assert got.run.name == "sft"
    assert got.eval.num_tasks == 0


def test_sft_keeps_what_was_asked_for():
    got = config("--sft.num-epochs", "1", "--sft.learning-rate", "5e-5", "--name", "b", verb="sft")
    assert (got.sft.num_epochs, got.sft.learning_rate, got.run.name) == (1, 5e-5, "b")
    assert config("--model.path", "gpt2", verb="sft").sft.learning_rate == 2.0e-5
    assert config(verb="sft").eval.num_tasks == 512


def test_help_shows_every_setting_with_the_preset_s_value():
    printed = help_text("train", config("cartpole"))
    assert "--ppo.gamma 0.98" in printed
    assert "--envs.0.id CartPole-v1" in printed
    assert printed.count("\n  --") > 100
    assert max(map(len, printed.splitlines())) <= 80
    for option in OPTIONS:
        assert option in printed


def test_the_options_of_a_start_are_these():
    assert list(OPTIONS) == [
        "-c FILE, --config FILE",
        "--plugins MODULE",
        "--resume [CHECKPOINT]",
        "--trust",
        "--clean",
        "--dry-run",
        "--gpus N",
        "--nodes N",
        "--json",
        "--quiet",
        "--data FILE",
        "--name NAME",
        "--reward FILE.py:FUNCTION",
        "--deepspeed_config FILE",
    ]
