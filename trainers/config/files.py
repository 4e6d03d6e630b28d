"""Settings as YAML: read with every mistake named, written so that they load back equal.

A preset is a file of `configs/`. Preset, then files from left to right, then the command line:
mappings merge, lists replace. No torch, no tyro.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from trainers.config import schema
from trainers.config.former_names import rename_settings
from trainers.config.schema import Source, dotted
from trainers.config.secrets import without_secrets
from trainers.config.settings import CONFIG_ROOT, SCHEMA, Config
from trainers.config.yaml_format import Dumper, Loader
from trainers.errors import ConfigError
from trainers.redaction.redact import remember_secrets

HEADER = """\
# yaml-language-server: $schema=llmgym.schema.json
# Editors complete and check this file after: llmgym schema > llmgym.schema.json
"""
AMBIGUOUS = {"yes", "no", "on", "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One file: its values, where each was written, and what is wrong with it already."""

    tree: dict[str, Any]
    sources: Mapping[schema.Path, Source]
    problems: list[str] = field(default_factory=list[str])


def _walk(node: yaml.Node, path: schema.Path, line: int, file: str) -> dict[schema.Path, Source]:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    sources = {path: Source(file=file, line=line, text=text)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            sources |= _walk(value, (*path, key.value), key.start_mark.line + 1, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            sources |= _walk(value, (*path, index), value.start_mark.line + 1, file)
    return sources


def _ambiguous(tree: object, path: schema.Path, sources: Mapping[schema.Path, Source]) -> list[str]:
    """List the arguments of environments and rewards that were written no, off, on or yes."""
    if isinstance(tree, dict | list):
        inside = schema.entries(cast(object, tree))
        return [x for key, value in inside for x in _ambiguous(value, (*path, key), sources)]
    written = sources[path].text.lower() in AMBIGUOUS
    if isinstance(tree, bool) and written and "kwargs" in path:
        return [schema.quoted(path, tree, sources[path])]
    return []


def read_document(file: Path) -> Document:
    """Read one YAML file of settings.

    Raises:
        ConfigError: the file is missing or unreadable, is not YAML, has duplicate keys, keys that
            are not text, or aliases, or is not a mapping.
    """
    try:
        text = file.read_text(encoding="utf-8")
        loader: Any = Loader(text)
        node: yaml.Node | None = loader.get_single_node()
        tree: object = {} if node is None else loader.construct_document(node)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {file}, looked for from {Path.cwd()}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: {error.problem}.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{file} is not YAML: {error}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must be a mapping of settings, got {schema.value_text(tree)}.")
    settings = cast(dict[str, Any], tree)
    sources = _walk(node, (), 1, str(file)) if node else {}
    return Document(tree=settings, sources=sources, problems=_ambiguous(settings, (), sources))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it: mappings merge, anything else replaces."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], cast(Mapping[str, Any], value)) if both else value
    return result


def parse(text: str) -> schema.Path:
    """Return the path of a dotted name; dashes are underscores and digits are entries."""
    parts = text.replace("-", "_").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)


def typed(name: str, words: Sequence[str]) -> Any:  # noqa: ANN401
    """Return the value that words of the command line mean for the setting `name`.

    Text stays as it was typed where the setting is text; anything else is read as YAML. No word
    is true; several words are a list, and one for a list is parted at its commas.

    Raises:
        ConfigError: a word is not YAML.
    """
    if not words:
        return True
    path = parse(name)
    kinds = {form.get("type") for form in schema.forms(schema.at(path) or {})}
    is_list = "array" in kinds and not words[0].startswith("[") and words != ["null"]
    if is_list and len(words) == 1:
        words = words[0].split(",")
    if is_list or len(words) > 1:
        return [typed(f"{name}.{index}", [word]) for index, word in enumerate(words)]
    word = words[0]
    if "string" in kinds and not ("null" in kinds and word == "null"):
        return word
    try:
        return yaml.load(word, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{dotted(path)} cannot be read from {word!r}: put it in quotes."
        ) from error


def _default(path: schema.Path) -> Any:  # noqa: ANN401
    value = schema.value_at(SCHEMA.dump_python(Config(), mode="json"), path)
    return {} if value is None else copy.deepcopy(value)


def _assign(tree: dict[str, Any], path: schema.Path, value: Any) -> None:  # noqa: ANN401
    """Put `value` at `path`; lists and arguments that are not there start from the default's."""
    node: Any = tree
    for depth, part in enumerate(path):
        inside, rows, section = path[: depth + 1], schema.as_list(node), schema.as_mapping(node)
        key: Any = part if section is None else str(part)
        if rows is not None:
            _grow(rows, inside)
        elif section is None:
            raise ConfigError(schema.unknown(inside))
        if depth == len(path) - 1:
            node[key] = copy.deepcopy(value)
        elif section is not None and section.get(key) is None:
            section[key] = _default(inside)
        node = node[key]


def _grow(rows: list[Any], path: schema.Path) -> None:
    """Add an entry where `path` asks for the one after the last; refuse one further away."""
    *outer, part = path
    if not isinstance(part, int) or part > len(rows):
        name = dotted(tuple(outer))
        raise ConfigError(
            f"{dotted(path)} does not exist. The next entry of {name} is {name}.{len(rows)}."
        )
    if part == len(rows):
        rows.append({})


def read(files: Sequence[Path] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of YAML files, left to right, with `overrides` by dotted name on top.

    Raises:
        ConfigError: with every mistake at once: path, what it must be, what was got, where.
    """
    documents = [read_document(file) for file in files]
    tree: dict[str, Any] = {}
    sources: dict[schema.Path, Source] = {}
    for document in documents:
        tree = merge(tree, document.tree)
        sources |= document.sources
    tree = copy.deepcopy(tree)
    for name, value in (overrides or {}).items():
        path = parse(name)
        _assign(tree, path, value)
        sources = {key: source for key, source in sources.items() if key[: len(path)] != path}
    rename_settings(tree)
    remember_secrets(tree)  # before any message quotes a value
    problems = [problem for document in documents for problem in document.problems]
    try:
        config = SCHEMA.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise schema.combined_error(
            [*problems, *schema.validation_messages(error, sources)]
        ) from error
    if problems:
        raise schema.combined_error(problems)
    return config


def dump(config: Config) -> str:
    """Return every setting but secrets as YAML that `read` turns back into an equal config."""
    return HEADER + yaml.dump(without_secrets(config), Dumper=Dumper, sort_keys=False)


def presets() -> dict[str, Path]:
    """Return the presets by name: the files of `configs/`."""
    return {file.stem: file for file in sorted(CONFIG_ROOT.glob("*.yaml"))}


def layers() -> dict[str, Path]:
    """Return every file of `configs/` by its name there: `quickstart`, `models/lora`."""
    files = sorted(CONFIG_ROOT.rglob("*.yaml"))
    return {file.relative_to(CONFIG_ROOT).with_suffix("").as_posix(): file for file in files}


def layer(file: Path) -> Path:
    """Return the file that `-c` means: the user's own, or else one of `configs/` by its name.

    `models/lora`, `models/lora.yaml` and `configs/models/lora.yaml` mean the same in any folder.

    Raises:
        ConfigError: there is neither; names what was perhaps meant.
    """
    if file.exists():
        return file
    known = layers()
    name = file.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if name in known:
        return known[name]
    meant = {name.rpartition("/")[2]: name for name in known} | {name: name for name in known}
    meant |= {str(file): str(file) for file in file.parent.glob("*.y*ml")}
    close = schema.nearest(name, list(meant)) or schema.nearest(str(file), list(meant))
    hint = f" Did you mean -c {meant[close]}?" if close else ""
    shipped = ", ".join(name for name in known if "/" in name)
    raise ConfigError(
        f"there is no file {file}, looked for from {Path.cwd()}, and llmgym has none of that name."
        f"{hint}\nLayers that it has: {shipped}"
    )


def preset(name: str) -> Path:
    """Return the file of a preset.

    Raises:
        ConfigError: there is none of that name.
    """
    known = presets()
    if name in known:
        return known[name]
    close = schema.nearest(name, list(known))
    hint = f" Did you mean {close}?" if close else ""
    if name.endswith((".yaml", ".yml")):
        hint = f" A file is given with -c {name}"
    elif name in layers():
        hint = f" It is a layer over one: -c {name}"
    raise ConfigError(f'no preset "{name}".{hint}\nPresets: {", ".join(known)}')


def purpose(file: Path) -> str:
    """Return the sentence after `# Purpose:` in a config file, or nothing."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        word = re.match(r"#\s*(\w+):\s*(.*)", line)
        if lines and (word or not line.startswith("#")):
            break
        if word and word[1] == "Purpose":
            lines = [word[2]]
        elif lines:
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _flat(tree: object, path: schema.Path = ()) -> dict[str, Any]:
    inside = schema.entries(tree)
    if isinstance(tree, dict) or any(isinstance(value, dict) for _, value in inside):
        return {k: v for key, value in inside for k, v in _flat(value, (*path, key)).items()}
    return {dotted(path): tree}


def flat(config: Config) -> dict[str, Any]:
    """Return every setting by its dotted name, without secrets."""
    return _flat(without_secrets(config))


def changed_settings(config: Config, base: Config) -> list[str]:
    """Return what `config` changes of `base`, one `ppo.gamma 1.0 -> 0.99` each."""
    new, old = flat(config), flat(base)
    return [
        f"{key} {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
