"""`llmgym envs new`: an installable package with an environment, its tasks, a test and a README."""

import json
import keyword
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from string import Template

from trainers.cli import scaffold_turns
from trainers.errors import ConfigError
from trainers.redaction.text_files import naming

OPPOSITES = (
    "hot cold, big small, up down, left right, open closed, fast slow, high low, old young, "
    "hard soft, light dark, wet dry, full empty, early late, near far, loud quiet, rich poor, "
    "sweet bitter, thick thin, strong weak, first last, long short, push pull, day night, "
    "win lose"
)
PYPROJECT = Template("""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$dashed"
version = "0.1.0"
description = "A Gymnasium environment for language models."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["llmgym-rl"]

[project.optional-dependencies]
test = ["pytest"]

# `import llmgym` imports this module, so the id is there wherever the package is installed.
[project.entry-points."llmgym.envs"]
$name = "$name"

[tool.hatch.build.targets.wheel]
packages = ["$name"]
""")
INIT = Template('''\
"""Registers `$id`."""

import llmgym

ID = "$id"

llmgym.register(ID, "$name.env:make", tags=$tags)
''')
ENV = Template('''\
"""`$id`: name the opposite of a word."""

from pathlib import Path

import llmgym
from llmgym.rows import Columns
from llmgym.data.splits import read_split

TASKS = Path(__file__).with_name("tasks.jsonl")
COLUMNS = Columns(answer="answer", solution="answer")


def score(response, answer, **columns):
    """Return named parts, whose sum is the reward: the right word, and nothing around it."""
    text = response.strip()
    return {
        "right": 0.8 * (text.lower().strip(".") == answer),
        "plain": 0.2 * (text == answer),
    }


def make(split="train", reward=None, **kwargs):
    """Build the environment.

    Args:
        split: "train", "test" for the held-out tenth of the tasks, or "all".
        reward: judges the responses instead of `score`.
        **kwargs: for `llmgym.SingleTurnEnv`.
    """
    tasks = read_split(TASKS, split, COLUMNS)
    if reward is None:  # another reward has other bounds
        kwargs.setdefault("reward_bounds", (0.0, 1.0))
    return llmgym.SingleTurnEnv(tasks, reward or score, **kwargs)
''')
TEST = Template('''\
"""The environment keeps the contract, and pays for what it should."""

import gymnasium
import pytest
from llmgym.check import check

from $name import ID
from $name.env import score


def test_the_environment_keeps_the_contract():
    assert check(ID, held_out={"split": "test"}) == []


@pytest.mark.parametrize(
    ("response", "worth"), [("cold", 1.0), (" Cold.", 0.8), ("warm", 0.0), ("", 0.0)]
)
def test_the_right_word_is_paid_for(response, worth):
    assert sum(score(response, "cold").values()) == pytest.approx(worth)


def test_a_step_answers_a_prompt():
    env = gymnasium.make(ID)
    observation, _ = env.reset(seed=0)
    assert "opposite" in observation[0]["content"]
    *_, terminated, truncated, info = env.step(env.unwrapped.solve())
    assert (terminated, truncated, info["reward/right"]) == (True, False, 0.8)
''')
README = Template("""\
# $dashed

An environment for [llmgym](https://pypi.org/project/llmgym-rl/): `$id`.

```bash
pip install -e .
pytest
llmgym envs check $id
llmgym envs show $id
llmgym train --envs.0.id $id --model.path MODEL --name $dashed
```

$files
- `tests/test_env.py`: what must stay true.
""")

ONE_TURN = """\
- `$name/tasks.jsonl`: the tasks, one a line. Every column but `prompt` reaches `score` by its name.
- `$name/env.py`: what a response earns, and how the environment is built. For several turns, start
  with `llmgym envs new NAME --turns`."""


def checked_name(name: str) -> str:
    """Return a name that a package can have.

    Raises:
        ConfigError: it cannot be one, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        hint = f" Did you mean {near}?" if near and near != name else ""
        raise ConfigError(
            f'"{name}" is no name of a package: small letters, digits and underscores, a letter '
            f"first.{hint}\nllmgym envs new my_env"
        )
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise ConfigError(
            f'"{name}" is the name of a package that is there already. Choose another: '
            f"llmgym envs new my_{name}"
        )
    return name


def id_of(name: str) -> str:
    """Return the id of a package's environment: `my_env` has `my_env/MyEnv-v0`."""
    return f"{name}/{''.join(part.capitalize() for part in name.split('_'))}-v0"


def files_of(name: str, *, turns: bool = False) -> dict[str, str]:
    """Return the text of every file of a new package, by its path.

    Args:
        name: of the package.
        turns: whether its episodes have several turns.
    """
    words = {"name": name, "dashed": name.replace("_", "-"), "id": id_of(name)}
    words["tags"] = '["words", "turns"]' if turns else '["words"]'
    words["files"] = Template(scaffold_turns.TURNS_FILES if turns else ONE_TURN).substitute(words)
    env, test = (scaffold_turns.TURNS_ENV, scaffold_turns.TURNS_TEST) if turns else (ENV, TEST)
    pairs = [pair.split() for pair in OPPOSITES.split(", ")]
    rows = [
        {"prompt": f"What is the opposite of {word}?", "answer": other} for word, other in pairs
    ]
    return {
        "pyproject.toml": PYPROJECT.substitute(words),
        "README.md": README.substitute(words),
        f"{name}/__init__.py": INIT.substitute(words),
        f"{name}/env.py": env.substitute(words),
        f"{name}/tasks.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows),
        "tests/test_env.py": test.substitute(words),
    }


def scaffold(name: str, parent: Path, *, turns: bool = False) -> Path:
    """Write a new package, whole or not at all, and return its folder.

    Args:
        name: of the package.
        parent: where its folder is made.
        turns: whether its episodes have several turns.

    Raises:
        ConfigError: the folder exists, or the name cannot be a package's.
    """
    folder = parent / name
    if folder.exists():
        raise ConfigError(f"{folder} exists. Choose another name, or another folder: --dir DIR")
    files = files_of(checked_name(name), turns=turns)
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    try:
        for path, text in files.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            with naming(folder / path):
                (draft / path).write_text(text, encoding="utf-8")
        draft.chmod(0o755)  # a temporary folder is its owner's alone
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
