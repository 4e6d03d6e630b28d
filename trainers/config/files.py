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
from typing import Any

import yaml
from pydantic import ValidationError

from trainers.config import schema
from trainers.config.schema import Source, dotted
from trainers.config.secrets import without_secrets
from trainers.config.settings import CONFIG_ROOT, SCHEMA, Config
from trainers.errors import ConfigError
from trainers.redaction.redact import learn

HEADER = """\
# yaml-language-server: $schema=llmgym.schema.json
# Editors complete and check this file after: llmgym schema > llmgym.schema.json
"""
AMBIGUOUS = {"yes", "no", "on", "off"}
DIGITS, POWER = r"(0|[1-9][0-9_]*)", r"[eE][-+]?[0-9]+"
INTEGER = re.compile(rf"[-+]?{DIGITS}$")
FLOAT = re.compile(rf"[-+]?({DIGITS}\.[0-9]*({POWER})?|{DIGITS}{POWER}|\.[0-9]+({POWER})?)$")


class Loader(yaml.SafeLoader):
    """YAML in which 3e-6 is a number, and dates, times and octal numbers are text.

    Keys are text and unique; aliases, which can grow without bound, are refused.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node; an alias raises."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="aliases are not read, write it out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a key that is no text, or comes twice, raises."""
        seen: set[str] = set()
        for key, _ in node.value:
            problem = f'the key "{key.value}" comes twice' if key.value in seen else ""
            if key.tag != "tag:yaml.org,2002:str":
                problem = f'the key {key.value} is not text, put it in quotes: "{key.value}"'
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, list("-+0123456789"))
Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool",
    re.compile(r"(true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)$"),
    list("tTfFyYnNoO"),
)
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), [
    "~", "n", "N", "",
])  # fmt: skip


class Dumper(yaml.SafeDumper):
    """YAML that this loader and a plain one read alike: 3.0e-6, short lists on one line."""


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    mantissa, mark, exponent = repr(value).partition("e")
    whole = mantissa if "." in mantissa else f"{mantissa}.0"
    text = f"{whole}e{int(exponent):+d}".replace("e-0", "e-") if mark else repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if FLOAT.match(value) or INTEGER.match(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    is_flat = not any(isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=is_flat)


Dumper.add_representer(float, _number)
Dumper.add_representer(str, _text)
Dumper.add_representer(list, _list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One file: its values, where each was written, and what is wrong with it already."""

    tree: dict[str, Any]
    sources: Mapping[schema.Path, Source]
    problems: list[str] = field(default_factory=list)


def _walk(node: yaml.Node, path: schema.Path, line: int, file: str) -> dict[schema.Path, Source]:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    found = {path: Source(file=file, line=line, text=text)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found |= _walk(value, (*path, key.value), key.start_mark.line + 1, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found |= _walk(value, (*path, index), value.start_mark.line + 1, file)
    return found


def _ambiguous(tree: Any, path: schema.Path, sources: Mapping[schema.Path, Source]) -> list[str]:  # noqa: ANN401
    """List the arguments of environments and rewards that were written no, off, on or yes."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [x for key, value in items for x in _ambiguous(value, (*path, key), sources)]
    written = sources[path].text.lower() in AMBIGUOUS
    if isinstance(tree, bool) and written and "kwargs" in path:
        return [schema.quoted(path, tree, sources[path])]
    return []


def load(file: Path) -> Document:
    """Read one YAML file of settings.

    Raises:
        ConfigError: the file is missing or unreadable, is not YAML, has duplicate keys, keys that
            are not text, or aliases, or is not a mapping.
    """
    try:
        text = file.read_text(encoding="utf-8")
        loader = Loader(text)
        node = loader.get_single_node()
        tree = {} if node is None else loader.construct_document(node)
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
        raise ConfigError(f"{file} must be a mapping of settings, got {schema.shown(tree)}.")
    sources = _walk(node, (), 1, str(file)) if node else {}
    return Document(tree=tree, sources=sources, problems=_ambiguous(tree, (), sources))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it: mappings merge, anything else replaces."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
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
        inside = path[: depth + 1]
        if isinstance(node, list) and (not isinstance(part, int) or part > len(node)):
            raise ConfigError(
                f"{dotted(inside)} does not exist. The next entry of {dotted(path[:depth])} is "
                f"{dotted(path[:depth])}.{len(node)}."
            )
        if not isinstance(node, list | dict):
            raise ConfigError(schema.unknown(inside))
        if isinstance(node, list) and part == len(node):
            node.append({})
        key: Any = str(part) if isinstance(node, dict) else part
        if depth == len(path) - 1:
            node[key] = copy.deepcopy(value)
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = _default(inside)
        node = node[key]


def read(files: Sequence[Path] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of YAML files, left to right, with `overrides` by dotted name on top.

    Raises:
        ConfigError: with every mistake at once: path, what it must be, what was got, where.
    """
    documents = [load(file) for file in files]
    tree: dict[str, Any] = {}
    sources: dict[schema.Path, Source] = {}
    for document in documents:
        tree = merged(tree, document.tree)
        sources |= document.sources
    tree = copy.deepcopy(tree)
    for name, value in (overrides or {}).items():
        path = parse(name)
        _assign(tree, path, value)
        sources = {key: one for key, one in sources.items() if key[: len(path)] != path}
    learn(tree)  # before any message quotes a value
    problems = [problem for document in documents for problem in document.problems]
    try:
        config = SCHEMA.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise schema.refusal([*problems, *schema.explained(error, sources)]) from error
    if problems:
        raise schema.refusal(problems)
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
    return {one.relative_to(CONFIG_ROOT).with_suffix("").as_posix(): one for one in files}


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
    meant = {one.rpartition("/")[2]: one for one in known} | {one: one for one in known}
    meant |= {str(one): str(one) for one in file.parent.glob("*.y*ml")}
    close = schema.nearest(name, list(meant)) or schema.nearest(str(file), list(meant))
    hint = f" Did you mean -c {meant[close]}?" if close else ""
    shipped = ", ".join(one for one in known if "/" in one)
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
    said: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        word = re.match(r"#\s*(\w+):\s*(.*)", line)
        if said and (word or not line.startswith("#")):
            break
        if word and word[1] == "Purpose":
            said = [word[2]]
        elif said:
            said.append(line.lstrip("# "))
    return " ".join(said)


def _flat(tree: Any, path: schema.Path = ()) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(tree, dict) or (
        isinstance(tree, list) and any(isinstance(x, dict) for x in tree)
    ):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, one in items for k, v in _flat(one, (*path, key)).items()}
    return {dotted(path): tree}


def flat(config: Config) -> dict[str, Any]:
    """Return every setting by its dotted name, without secrets."""
    return _flat(without_secrets(config))


def difference(config: Config, base: Config) -> list[str]:
    """Return what `config` changes of `base`, one `ppo.gamma 1.0 -> 0.99` each."""
    new, old = flat(config), flat(base)
    return [
        f"{key} {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
