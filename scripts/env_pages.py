"""Write a page of docs/envs/ for every built-in environment, from what is registered.

Run: python scripts/env_pages.py          (--check says which pages are not current; exit code 1)
"""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent

# Python looks for packages in scripts/ and not in the checkout.
sys.path.insert(0, str(Path(__file__).parents[1]))

from llmgym import registry
from llmgym.data.tasks import num_tasks
from llmgym.env import LLMEnv, core_env
from llmgym.envs import BUILT_IN, NUMERIC
from llmgym.episodes import JUNK

FOLDER = Path(__file__).parents[1] / "docs" / "envs"
SEED = 0


def file_name(env_id: str) -> str:
    """Return the page's name: llmgym/GSM8K-v0 is gsm8k-v0.md."""
    return f"{env_id.rpartition('/')[2].lower()}.md"


def page(env_id: str, target: str, tags: Sequence[str]) -> str:
    """Return the page of one environment in Markdown."""
    factory = registry.load(target)
    about = inspect.getdoc(inspect.getmodule(factory)) or ""
    about = re.sub(f"`{env_id}`: .", lambda match: match[0][-1].upper(), about)
    env = core_env(registry.create(target))
    held_out = core_env(registry.create(target, split="test"))
    low, high = env.reward_bounds
    observation, _ = env.reset(seed=SEED)
    prompt = observation[-1]["content"]
    facts = {
        "tags": ", ".join(tags),
        "observation": f"`{env.observation_space}`",
        "action": f"`{env.action_space}`",
        "reward": f"{low:g} to {high:g}",
        "tasks": f"{_count(env)} to train on, {_count(held_out)} held out (`split: test`)",
    }
    lines = [f"# {env_id}", "", about, "", "| what | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "## One task", "", "Prompt", "", "```text", prompt, "```", ""]
    for word, answer in (("Good", env.solve), ("Bad", lambda: JUNK["prose"])):
        if answer() is not None:
            transcript, reward = _episode(env, answer)
            lines += [f"{word}: earns {reward:g}", "", "```text", *transcript, "```", ""]
    return "\n".join(lines[:-1] + _settings_part(env_id, factory)) + "\n"


def numeric_page(env_id: str, target: str, tags: Sequence[str]) -> str:
    """Return the page of an environment of numbers in Markdown."""
    factory = registry.load(target)
    about = inspect.getdoc(inspect.getmodule(factory)) or ""
    about = re.sub(f"`{env_id}`: .", lambda match: match[0][-1].upper(), about)
    env = registry.create(target)
    facts = {
        "tags": ", ".join(tags),
        "observation": f"`{env.observation_space}`",
        "action": f"`{env.action_space}`",
    }
    lines = [f"# {env_id}", "", about, "", "| what | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(lines + _settings_part(env_id, factory)) + "\n"


def _settings_part(env_id: str, factory: object) -> list[str]:
    """Return the lines of a page that explain the settings."""
    how = f'Set by `--envs.0.kwargs.NAME VALUE`, or `gym.make("{env_id}", NAME=VALUE)`.'
    head = ["", "## Settings", "", how, "", "| name | default | meaning |", "| --- | --- | --- |"]
    return head + _settings(factory)


def _episode(env: LLMEnv, answer: Callable[[], str | None]) -> tuple[list[str], float]:
    """Return the messages of an episode, a line each, and its reward."""
    env.reset(seed=SEED)
    transcript, total, over = [], 0.0, False
    while not over:
        before = answer() or ""
        obs, reward, terminated, truncated, _ = env.step(before)
        total, over = total + reward, terminated or truncated
        transcript.append(before)
        told = obs[-1]["content"].replace("\n", "\n    ")
        transcript += [f"    {told}"] if obs[-1]["role"] != "assistant" else []
    return transcript, total


def _count(env: object) -> str:
    size = num_tasks(env.tasks)  # type: ignore[attr-defined]
    return "endless" if size is None else str(size)


def _settings(factory: object) -> list[str]:
    """Return a row for each argument that the factory's docstring explains."""
    parameters = inspect.signature(factory).parameters  # type: ignore[arg-type]
    match = re.search(r"Args:\n(.*?)(\n\n|\Z)", inspect.getdoc(factory) or "", re.DOTALL)
    entries = re.split(r"\n(?=\S)", dedent(match[1])) if match else []
    rows = []
    for entry in entries:
        name, _, meaning = entry.partition(":")
        if name in parameters:
            text = " ".join(meaning.split()).replace("|", "\\|")
            rows.append(f"| `{name}` | `{parameters[name].default!r}` | {text} |")
    return rows


def index(ids: Sequence[str]) -> str:
    """Return the page that lists all others."""
    lines = [
        "# Environments",
        "",
        "What `llmgym envs list` lists; `llmgym envs show ID` shows one.",
    ]
    lines += ["These pages are written by `scripts/env_pages.py`.", ""]
    lines += [f"- [{env_id}]({file_name(env_id)})" for env_id in ids]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Return every page by its file's name."""
    made = {file_name(env_id): page(env_id, target, tags) for env_id, target, tags in BUILT_IN}
    made |= {file_name(row[0]): numeric_page(*row) for row in NUMERIC}
    return {"index.md": index([env_id for env_id, *_ in (*BUILT_IN, *NUMERIC)]), **made}


def stale() -> list[str]:
    """Return the names of pages that are missing, outdated or of no environment."""
    made = pages()
    there = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.md")}
    return sorted(name for name in made.keys() | there if made.get(name) != there.get(name))


def main(argv: Sequence[str]) -> int:
    """Write the pages, or check them."""
    if "--check" in argv:
        old = stale()
        print(f"run scripts/env_pages.py: {', '.join(old)}" if old else "current")
        return 1 if old else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale():
        (FOLDER / name).unlink(missing_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{FOLDER}: {len(BUILT_IN) + len(NUMERIC)} environments")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
