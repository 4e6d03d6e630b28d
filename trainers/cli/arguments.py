"""The arguments of `train`, of its stages and of `plan`: a preset, options, settings by name.

One mechanism for every setting: `--PATH VALUE` is looked up in the schema, read with its type and
laid over the files, so that a flag and a line of YAML mean the same and fail with the same words.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmgym.rewards.base import REWARDS
from trainers.config import schema
from trainers.config.files import parse, presets, typed
from trainers.errors import ConfigError

SHORT = {
    "deepspeed_config": "backend.zero.config",
    "gpus": "backend.gpus",
    "nodes": "backend.nodes",
    "data": "data.path",
    "name": "run.name",
    "reward": "rewards.0.function",
}
OPTIONS = {
    "-c FILE, --config FILE": "over the preset: a file, or a layer (models/lora); the last wins",
    "--plugins MODULE": "import a module that registers environments or rewards; repeat it",
    "--resume [CHECKPOINT]": "continue the run, from its newest checkpoint or from the one given",
    "--trust": "let the code run that the settings of a run folder name; asked for once",
    "--clean": "move an existing run of this name to NAME.old-1",
    "--dry-run": "print what `llmgym plan` prints, and start nothing",
    "--gpus N": "short for --backend.gpus",
    "--nodes N": "short for --backend.nodes",
    "--json": "of a plan: everything as one line of JSON",
    "--quiet": "print warnings and the closing block only",
    "--data FILE": "short for --data.path",
    "--name NAME": "short for --run.name",
    "--reward FILE.py:FUNCTION": "short for --rewards.0.function; or a model's folder, or a name",
    "--deepspeed_config FILE": "short for --backend.zero.config",
}
RANK = ("--local_rank", "--local-rank")
SWITCHES = {
    "--trust": "trust",
    "--clean": "clean",
    "--quiet": "is_quiet",
    "--dry-run": "is_plan",
    "--json": "is_json",
    "-h": "is_help",
    "--help": "is_help",
}
BOOLEANS = {"true", "false", "yes", "no", "on", "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What was typed: about this start, never saved, except `overrides`."""

    preset: str | None = None
    files: tuple[Path, ...] = ()
    plugins: tuple[str, ...] = ()
    resume: str | bool = False
    trust: bool = False
    clean: bool = False
    is_quiet: bool = False
    is_plan: bool = False
    is_json: bool = False
    is_help: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


def _without_rank(argv: Sequence[str]) -> list[str]:
    """Drop the rank that launchers put before or behind the words; it is in the environment."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in RANK:
            next(words, None)
        elif not word.startswith(tuple(f"{name}=" for name in RANK)):
            kept.append(word)
    return kept


def _is_option(word: str) -> bool:
    return word.startswith("-") and not re.match(r"-[.\d]", word)


def _split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Split words into those before the first option, and each option with the words after it."""
    leading: list[str] = []
    options: list[tuple[str, list[str]]] = []
    for word in argv:
        if _is_option(word):
            name, equals, value = word.partition("=")
            options.append((name, [value] if equals else []))
        else:
            (options[-1][1] if options else leading).append(word)
    return leading, options


def _taken(name: str, words: Sequence[str]) -> int:
    """Return how many of the words after the setting `name` are its value."""
    kinds = {form.get("type") for form in schema.forms(schema.at(parse(name)) or {})}
    if "array" in kinds:
        return len(words)
    if kinds <= {"boolean", "null"} and kinds - {None}:
        return int(bool(words) and words[0].lower() in BOOLEANS)
    return min(len(words), 1)


def _stray(words: Sequence[str], argv: Sequence[str], verb: str) -> ConfigError:
    """Return the error for words that belong to no option."""
    word = words[0]
    if word in presets():
        rest = list(argv)
        rest.reverse()
        rest.remove(word)
        command = shlex.join(["llmgym", verb, word, *reversed(rest)])
        return ConfigError(f'the preset "{word}" must come first.\n{command}')
    return ConfigError(f'"{word}" belongs to no option.\nllmgym {verb} --help lists them')


def _single(name: str, words: Sequence[str]) -> str:
    if not words:
        raise ConfigError(f"{name} needs a value.")
    return words[0]


def _reward_source(value: str) -> str:
    """Return the setting that a reward without a colon is given to: a model, a name, a function."""
    if Path(value).is_dir():
        return "rewards.0.model"
    return "rewards.0.name" if value in REWARDS else SHORT["reward"]


def _setting(name: str, words: Sequence[str]) -> tuple[str, Any, int]:
    """Return the setting that an option means, its value and the number of words it took."""
    path = SHORT.get(name.removeprefix("--"), name.removeprefix("--")).replace("-", "_")
    if name == "--reward" and words and ":" not in words[0]:
        path = _reward_source(words[0])
    if not name.startswith("--") or not path:
        raise ConfigError(f"{name} is not an option.\nllmgym train --help lists them")
    count = _taken(path, words)
    kinds = {form.get("type") for form in schema.forms(schema.at(parse(path)) or {})}
    if not count and schema.at(parse(path)) is not None and "boolean" not in kinds:
        raise ConfigError(f"{name} needs a value.\nllmgym schema --field {path}")
    return path, typed(path, words[:count]), count


def read_arguments(argv: Sequence[str], verb: str = "train") -> Launch:
    """Return what the words after `train` or the verb of one stage mean.

    Raises:
        ConfigError: a word belongs to no option, the preset is not first, a value is missing.
    """
    argv = _without_rank(argv)
    leading, options = _split(argv)
    if len(leading) > 1:
        raise _stray(leading[1:], argv, verb)
    lists: dict[str, list[str]] = {"files": [], "plugins": []}
    switches: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for name, words in options:
        used = 1
        if name in ("-c", "--config", "--plugins"):
            lists["plugins" if name == "--plugins" else "files"].append(_single(name, words))
        elif name == "--resume":
            used = min(len(words), int(words[:1] != [] and words[0] not in presets()))
            switches["resume"] = words[0] if used else True
        elif name in SWITCHES:
            used = 0
            switches[SWITCHES[name]] = True
        else:
            path, value, used = _setting(name, words)
            overrides[path] = value
        if words[used:]:
            raise _stray(words[used:], argv, verb)
    switches["is_plan"] = verb == "plan" or "is_plan" in switches
    if "is_json" in switches and not switches["is_plan"]:
        raise ConfigError("--json belongs to a plan.\nllmgym plan takes it, and --dry-run")
    preset = leading[0] if leading else None
    return Launch(
        preset=preset,
        files=(*map(Path, lists["files"]),),
        plugins=(*lists["plugins"],),
        overrides=overrides,
        **switches,
    )
