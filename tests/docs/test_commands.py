"""Every command of the pages is one that exists: verb, preset, options, settings, targets."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, commands, name
from trainers.cli import (
    bench,
    compress,
    data,
    envs,
    export,
    launch,
    options,
    play,
    report,
    rewards,
    runs,
    schema,
    serve,
)
from trainers.cli import eval as evaluation
from trainers.cli.arguments import read_arguments
from trainers.cli.doctor import Options as Doctor
from trainers.cli.main import VERBS
from trainers.cli.train import config_of

OPTIONS = {
    "eval": evaluation.Options,
    "play": play.Options,
    "envs": envs.Command,
    "rewards": rewards.Options,
    "compress": compress.Options,
    "data": data.Options,
    "export": export.Options,
    "bench": bench.Options,
    "serve": serve.Options,
    "report": report.Options,
    "runs": runs.Command,
    "launch": launch.Options,
    "schema": schema.Options,
    "doctor": Doctor,
}
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
OTHERS = {"source", "export", "git", "wandb", "pip", "apt-get"}
EVERY = [(name(page), words) for page in PAGES for words in commands(page)]


def read(verb, words, folder):
    """Parse the words of a verb as the command line does."""
    words = words[: words.index(">")] if ">" in words else words
    if verb == "launch" and "--" in words:
        read("train", words[words.index("--") + 1 :], folder)
        words = words[: words.index("--")]
    if verb in OPTIONS:
        return options.parse_options(OPTIONS[verb], words, verb)
    launch = read_arguments(words, verb)
    for file in launch.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        ours = ROOT / file
        settings = ours.read_text("utf-8") if ours.is_file() else "{}\n"  # the reader's own
        (folder / file).write_text(settings, "utf-8")
    return config_of(launch, verb)


@pytest.mark.parametrize(
    ("page", "words"), EVERY, ids=[f"{page}: {' '.join(words[:4])}" for page, words in EVERY]
)
def test_every_command_is_understood(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    match words:
        case ["llmgym", "--help"]:
            pass
        case ["llmgym", verb, *rest]:
            assert verb in VERBS
            read(verb, rest, tmp_path)
        case ["make", target, *_]:
            assert target in TARGETS
        case ["torchrun" | "deepspeed" | "srun", *rest]:
            at = rest.index("scripts/train_ppo.py")
            read("train", rest[at + 1 :], tmp_path)
        case [".venv/bin/python" | "python", "-m", module, *_]:
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
        case [".venv/bin/python" | "python", script, *_]:
            assert (ROOT / script).is_file()
        case [program, *_]:
            assert program in OTHERS, f"{page}: {' '.join(words)}"


def test_the_pages_show_commands():
    assert len(EVERY) > 30
