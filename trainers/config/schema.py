"""The settings by dotted path, and the messages where one of them is wrong. No torch, no tyro."""

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from trainers.config import backend as config_backend
from trainers.config import settings as config
from trainers.config import text as config_text
from trainers.config.settings import SCHEMA
from trainers.errors import ConfigError

Path = tuple[str | int, ...]
Schema = Mapping[str, Any]

TYPE_WORDS = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
# What readers of other projects type, by the name it has here.
SYNONYMS = {
    "lr": "ppo.learning_rate",
    "critic_lr": "ppo.critic_learning_rate",
    "epochs": "ppo.num_epochs",
    "ppo_epochs": "ppo.num_epochs",
    "num_ppo_epochs": "ppo.num_epochs",
    "batch_size": "ppo.num_prompts",
    "num_mini_batches": "ppo.num_minibatches",
    "max_steps": "ppo.num_iterations",
    "iterations": "ppo.num_iterations",
    "clip_coef": "ppo.clip_low",
    "clip_range": "ppo.clip_low",
    "cliprange": "ppo.clip_low",
    "epsilon": "ppo.clip_low",
    "vf_coef": "ppo.value_coef",
    "ent_coef": "ppo.entropy_coef",
    "lam": "ppo.gae_lambda",
    "lmbda": "ppo.gae_lambda",
    "response_length": "generation.max_new_tokens",
    "seed": "run.seed",
    "output_dir": "run.dir",
    "model": "model.path",
    "env": "envs.0.id",
    "train_file": "data.path",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a value was written: its file, its line, counted from 1, and its text there."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f" ({self.file}, line {self.line})"


@functools.cache
def root() -> Schema:
    """Return the JSON schema of all settings, as draft 2020-12, in the order of the source."""
    tree = SCHEMA.json_schema()
    classes = {**vars(config_backend), **vars(config_text), **vars(config)}
    for name, section in tree["$defs"].items():
        order = [field.name for field in dataclasses.fields(classes[name])]
        section["properties"] = {name: section["properties"][name] for name in order}
    return tree


def forms(schema: Schema) -> list[Schema]:
    """Return the alternatives that a schema allows, references resolved."""
    if "$ref" in schema:
        return forms(root()["$defs"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return [form for option in schema["anyOf"] for form in forms(option)]
    return [schema]


def child(schema: Schema, part: str | int) -> Schema | None:
    """Return the schema of one step down, None where there is none, {} where all is allowed."""
    for form in forms(schema):
        if part in form.get("properties", {}):
            return form["properties"][part]
        if extra := form.get("additionalProperties"):
            return {} if extra is True else extra
        is_item = form.get("type") == "array" and str(part).isdigit()
        items = [*form.get("prefixItems", []), form.get("items")]
        if is_item:
            return items[min(int(part), len(items) - 1)]
    return {} if not schema else None


def at(path: Path) -> Schema | None:
    """Return the schema of a setting or section, or None if there is no such setting."""
    schema: Schema | None = root()
    for part in path:
        schema = None if schema is None else child(schema, part)
    return schema


def names(path: Path) -> list[str]:
    """Return the names of the settings of a section; none if it is not one."""
    return [name for form in forms(at(path) or {}) for name in form.get("properties", {})]


def leaves(path: Path = ()) -> Iterator[Path]:
    """Yield the path of every setting, sections left out; a list is looked into at entry 0."""
    schema = at(path) or {}
    if names(path):
        for name in names(path):
            yield from leaves((*path, name))
    elif any(names((*path, 0)) for form in forms(schema) if form.get("type") == "array"):
        yield from leaves((*path, 0))
    else:
        yield path


def as_mapping(tree: object) -> dict[str | int, Any] | None:
    """Return a node of nested settings as the mapping that it is; None if it is none."""
    return cast(dict[str | int, Any], tree) if isinstance(tree, dict) else None


def as_list(tree: object) -> list[Any] | None:
    """Return a node of nested settings as the list that it is; None if it is none."""
    return cast(list[Any], tree) if isinstance(tree, list) else None


def entries(tree: object) -> list[tuple[str | int, Any]]:
    """Return what a mapping or a list holds, by key or by number; nothing of anything else."""
    mapping = as_mapping(tree)
    return list(enumerate(as_list(tree) or ())) if mapping is None else list(mapping.items())


def value_at(tree: Any, path: Path) -> Any:  # noqa: ANN401
    """Return the value at a path of nested settings, or None if there is none."""
    for part in path:
        rows = as_list(tree)
        if rows is not None and isinstance(part, int):
            tree = rows[part] if part < len(rows) else None
        else:
            tree = (as_mapping(tree) or {}).get(part)
    return tree


def dotted(path: Path) -> str:
    """Return a path as it is typed: ppo.clip_low."""
    return ".".join(map(str, path))


def kind(schema: Schema) -> str:
    """Say what a value has to be, ranges left out: `a number or null`."""
    words: list[str] = []
    for form in forms(schema):
        literals = form.get("enum") or ([form["const"]] if "const" in form else [])
        words += map(str, literals) if literals else [TYPE_WORDS[form["type"]]]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def bounds(schema: Schema) -> str:
    """Say in which range a number has to be: `above 0 and below 1`."""
    parts = [
        f"{word} {form[key]:g}"
        for form in forms(schema)
        for key, word in BOUNDS.items()
        if key in form
    ]
    return " and ".join(parts)


def value_text(value: Any) -> str:  # noqa: ANN401
    """Return a received value for a message, cut at 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"the text {text}" if isinstance(value, str) else text


def setting_text(value: Any) -> str:  # noqa: ANN401
    """Return a value as it is typed: null, true, [64, 64], text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word most like `word`, or None if none is like it."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.5)), None)


def suggestion(path: Path) -> str | None:
    """Return the setting that was probably meant by an unknown path."""
    parent, name = path[:-1], str(path[-1])
    siblings = names(parent)
    meant = SYNONYMS.get(name)
    if meant and (last := meant.rpartition(".")[2]) in siblings:
        return dotted((*parent, last))
    if not meant and (close := nearest(name, siblings)):
        return dotted((*parent, close))
    if not meant:
        by_name = {str(leaf[-1]): dotted(leaf) for leaf in reversed([*leaves()])}
        close = nearest(name, list(by_name))
        meant = by_name[close] if close else None
    return meant


def unknown(path: Path, where: str = "") -> str:
    """Return the message for a setting that does not exist."""
    meant = suggestion(path)
    hint = f" Did you mean {meant}?" if meant else ""
    section = f" --field {dotted(path[:-1])}" if path[:-1] else ""
    return f"{dotted(path)} is not a setting{where}.{hint}\nAll of them: llmgym schema{section}"


def quoted(path: Path, value: Any, source: Source | None) -> str:  # noqa: ANN401
    """Return the message for text that YAML read as something else."""
    text = source.text if source else json.dumps(value)
    reads = ": YAML reads no, off, on, yes as true or false" if isinstance(value, bool) else ""
    where = source or ""
    return (
        f"{dotted(path)} must be text, got {value_text(value)}{where}{reads}. "
        f'Put it in quotes: "{text}"'
    )


def out_of_range(path: Path, value: float, where: str) -> str:
    """Return the message for a number outside its range; a percentage is recognised."""
    schema = at(path) or {}
    tops = [form[k] for form in forms(schema) for k in ("exclusiveMaximum", "maximum") if k in form]
    hint = f" Did you mean {value / 100:g}?" if tops and tops[0] < value <= 100 * tops[0] else ""
    return f"{dotted(path)} must be {bounds(schema)}, got {value_text(value)}{where}.{hint}"


def type_message(path: Path, value: Any, where: str) -> str:  # noqa: ANN401
    """Return the message for a value of another kind than the setting's."""
    schema = at(path) or {}
    choices = [str(word) for form in forms(schema) for word in form.get("enum", [])]
    close = nearest(value, choices) if isinstance(value, str) and choices else None
    if isinstance(value, str) and names(path):
        close = SYNONYMS.get(dotted(path)) or dotted((*path, names(path)[0]))
    hint = f" Did you mean {close}?" if close else ""
    expected = "a section of settings" if names(path) else kind(schema)
    return f"{dotted(path)} must be {expected}, got {value_text(value)}{where}.{hint}"


def _shape(path: Path, error: Mapping[str, Any], where: str) -> str:
    if error["type"] == "string_pattern_mismatch":
        allowed = "letters, digits, dot, dash and underscore, at most 128, not a dot first"
        return f"{dotted(path)} must be made of {allowed}, got {value_text(error['input'])}{where}."
    if error["type"] in ("missing", "too_long", "too_short"):
        outer = path[:-1] if error["type"] == "missing" else path
        form = forms(at(outer) or {})[0]
        least, most = form.get("minItems", 0), form.get("maxItems")
        count = f"{least}" if least == most else f"at least {least}"
        entries = "entry" if least == 1 else "entries"
        got = as_list(error["input"])
        number = value_text(error["input"]) if got is None else len(got)
        return f"{dotted(outer)} must have {count} {entries}, got {number}{where}."
    return f"{dotted(path)}: {error['msg']}{where}."


def _message(error: Mapping[str, Any], sources: Mapping[Path, Source]) -> str:
    path: Path = tuple(error["loc"])
    got, what = error["input"], error["type"]
    source = sources.get(path[:-1] if what == "missing" else path)
    where = str(source or "")
    if what == "value_error":
        return str(error["ctx"]["error"])
    if what == "unexpected_keyword_argument":
        return unknown(path, where)
    if what == "string_type" and isinstance(got, bool | int | float):
        return quoted(path, got, source)
    if what.endswith("_type") or what in ("literal_error", "int_from_float"):
        return type_message(path, got, where)
    if what.startswith(("greater_than", "less_than")):
        return out_of_range(path, got, where)
    return _shape(path, error, where)


def combined_error(messages: Sequence[str]) -> ConfigError:
    """Return one error with every message; a line that repeats is kept where it comes last."""
    lines = "\n".join(messages).split("\n")
    return ConfigError("\n".join(x for i, x in enumerate(lines) if x not in lines[i + 1 :]))


def validation_messages(error: ValidationError, sources: Mapping[Path, Source]) -> list[str]:
    """Return a message for each thing pydantic found, in the file's words."""
    return [_message(detail, sources) for detail in error.errors(include_url=False)]
