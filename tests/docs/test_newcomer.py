"""The first pages as a newcomer follows them: files written, and every command typed in turn."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.docs.pages import ROOT, blocks
from tests.processes import process
from tests.tiny import save_model
from trainers.cli.main import main
from trainers.models.chat import train_tokenizer

FILE = re.compile(r"# (\w+\.(?:py|yaml))\n")
ANY = ["--ppo.num-iterations", "1", "--eval.num-tasks", "2", "--log.wandb.enabled", "false"]
TEXT = ["--ppo.num-prompts", "4", "--ppo.num-minibatches", "2", "--ppo.num-epochs", "1"]
TEXT += ["--generation.max-new-tokens", "4", "--generation.max-prompt-tokens", "40"]
FOLDERS = {"MODEL", "JUDGE", "CLASSIFIER"}
"""What the pages call folders of the reader's own; `folder` has them in small letters."""
ROWS = (
    'import json\nfor n in range(40): print(json.dumps({"prompt": f"Say {n}.", "answer": str(n)}))'
)


@pytest.fixture
def folder(tmp_path):
    """A folder with prompts, and a model in place of what the pages call MODEL."""
    save_model(tmp_path / "model")
    save_judge(tmp_path / "judge", ["score"])
    save_judge(tmp_path / "classifier", ["negative", "positive"])
    for run, made in (("emo-sft", "model"), ("emo-rm", "classifier")):  # of other pages
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "model").symlink_to(tmp_path / made)
    rows = subprocess.run([sys.executable, "-c", ROWS], stdout=subprocess.PIPE, check=True).stdout
    (tmp_path / "my.jsonl").write_bytes(rows)
    return tmp_path


def save_judge(folder, labels):
    """Save a tiny classifier with a tokenizer of its own."""
    tokenizer = train_tokenizer(["Say 12."], 270)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: at for at, label in enumerate(labels)},
        **sizes,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lines(page):
    """The commands of a page's bash blocks, as words."""
    for text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield [word.lower() if word in FOLDERS else word for word in words]


def run(words, folder):
    """Type `llmgym` with these words in a folder; what is printed goes to the file `printed`."""
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "site")]
    sys.argv = ["llmgym", *words]
    to = os.open("printed", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(to, 1)
    os.dup2(to, 2)
    sys.exit(main(words))


def forked(words, folder):
    """Run that in a process that need not import everything anew; its output."""
    started = process(run, words, folder)
    started.start()
    started.join(timeout=200)
    printed = (folder / "printed").read_text("utf-8")
    assert started.exitcode == 0, f"llmgym {shlex.join(words)}\n{printed}"
    return printed


def typed(words, folder):
    """Run a command of a page, short of its length; its output."""
    match words:
        case ["export", *_]:  # it is in `env` below
            return ""
        case ["pip", "install", "-e", package]:
            offline = ["--no-deps", "--no-build-isolation", "--no-index", "--target", "site"]
            words = [sys.executable, "-m", "pip", "install", "-q", *offline, f"./{package}"]
        case ["llmgym", *_] if any("my_words" in word for word in words):
            # Gymnasium looks for packages that were installed when it is imported.
            more = [*ANY, *TEXT] if words[1] == "train" else []
            words = [sys.executable, "-m", "trainers.cli", *words[1:], *more]
        case ["llmgym", "train", "cartpole", *_]:
            return forked([*words[1:], *ANY], folder)
        case ["llmgym", "train" | "sft", *_]:
            return forked([*words[1:], *ANY, *TEXT], folder)
        case ["llmgym", *_]:
            return forked(words[1:], folder)
    paths = os.pathsep.join([".", "site", str(ROOT)])
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", ["your-prompts", "your-reward", "your-env"])
def test_every_command_of_the_page_works(page, folder):
    path = ROOT / "docs" / "start" / f"{page}.md"
    for text in blocks(path, "python", "yaml"):
        if file := FILE.match(text):
            (folder / file[1]).write_text(text, "utf-8")
    if page == "your-prompts":  # the reward is the next page's
        for text in blocks(path.with_name("your-reward.md"), "python"):
            if FILE.match(text):
                (folder / "my_reward.py").write_text(text, "utf-8")
    shown = [typed(words, folder) for words in lines(path)]
    assert sum("Next" in one for one in shown) >= 2, "nothing was trained"


@pytest.mark.parametrize(
    ("page", "language", "most"), [("your-prompts", "json", 5), ("your-reward", "python", 5)]
)
def test_the_first_of_its_kind_is_five_lines_at_most(page, language, most):
    first = blocks(ROOT / "docs" / "start" / f"{page}.md", language)[0]
    assert len(first.strip().splitlines()) <= most
