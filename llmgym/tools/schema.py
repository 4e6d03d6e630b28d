"""JSON schemas of functions, from their signatures and docstrings, and arguments that fit them.

What is read of a schema is the part that describes arguments: type, enum, const, properties,
required, additionalProperties, items, anyOf, oneOf, allOf and references inside of it. Other
keywords, such as a range, are shown to the policy and left to the tool.
"""

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llmgym.errors import EnvContractError
from llmgym.rewards.json_schema import TYPES

SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
ARRAYS = (list, tuple, set, Sequence, types.GenericAlias)
OBJECTS = (dict, Mapping)

SECTION = re.compile(r"^[A-Z][A-Za-z ]*:\s*$")
PARAMETER = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")
MAX_DEPTH = 20


def signature_schema(function: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Return the description of a function and the JSON schema of its parameters.

    The description is its docstring above `Args:`, in which each parameter is described
    (`name: text`).

    Raises:
        EnvContractError: a parameter has no type or one that JSON cannot hold, or cannot be given
            by name.
    """
    name = getattr(function, "__name__", type(function).__name__)
    about, texts = _docstring(inspect.getdoc(function) or "")
    hints = _hints(function, name)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"parameter {parameter.name!r} of the tool {name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise EnvContractError(
                f"{where} cannot be given by name, and calls name their arguments. Write it as an "
                "ordinary parameter with a type"
            )
        if parameter.name not in hints:
            raise EnvContractError(
                f"{where} has no type, so that its schema would not say what to give. Annotate it, "
                f"such as {parameter.name}: str"
            )
        schema = type_schema(hints[parameter.name], where)
        if parameter.name in texts:
            schema["description"] = texts[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return about, {"type": "object", "properties": properties, "required": required}


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return get_type_hints(target)
    except NameError as error:
        raise EnvContractError(
            f"a type of the tool {name} cannot be read: {error}. Import it beside the tool"
        ) from error


def type_schema(hint: Any, where: str) -> dict[str, Any]:  # noqa: ANN401 - any annotation
    """Return the JSON schema of a type.

    Args:
        hint: str, int, float, bool, None, Any, an Enum, a Literal, a union, or a list or dict of
            these.
        where: names the parameter, for the message.

    Raises:
        EnvContractError: it is another type.
    """
    if hint is Any:
        return {}
    if hint in SIMPLE:
        return {"type": SIMPLE[hint]}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    origin, inside = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return _literal(list(inside))
    if origin in (Union, types.UnionType):
        return _union([type_schema(each, where) for each in inside])
    if origin in OBJECTS:
        values = {"additionalProperties": type_schema(inside[1], where)} if inside else {}
        return {"type": "object", **values}
    if origin in ARRAYS:
        kinds = [each for each in inside if each is not Ellipsis]
        items = _union([type_schema(each, where) for each in kinds]) if kinds else {}
        return {"type": "array", **({"items": items} if items else {})}
    raise EnvContractError(
        f"{where} is a {getattr(hint, '__name__', hint)}, which JSON cannot hold. Take text, "
        "numbers, bool, or lists and dicts of them"
    )


def _literal(options: list[Any]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(SIMPLE.get(type(option), "string") for option in options))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": options}


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    different = [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]
    if len(different) == 1:
        return different[0]
    if all(set(schema) == {"type"} and isinstance(schema["type"], str) for schema in different):
        return {"type": [schema["type"] for schema in different]}
    return {"anyOf": different}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the part of a docstring above its sections, and its parameters' descriptions."""
    about: list[str] = []
    texts: dict[str, str] = {}
    section, name = "", ""
    for line in text.splitlines():
        if SECTION.match(line):
            section, name = line.strip(), ""
        elif not section:
            about.append(line)
        elif section in ("Args:", "Arguments:", "Parameters:"):
            indent = len(line) - len(line.lstrip())
            start = PARAMETER.match(line.strip())
            if start and 0 < indent <= 4:
                name = start[1]
                texts[name] = start[2].strip()
            elif name and line.strip():
                texts[name] = f"{texts[name]} {line.strip()}".strip()
    return "\n".join(about).strip(), texts


def fitted(value: Any, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """Return arguments as a tool takes them: text that spells a number is one where none is text.

    Args:
        value: an object of JSON values.
        schema: of the tool's parameters.

    Raises:
        ValueError: they do not fit; names the argument.
    """
    return _fitted(value, schema, schema, "the arguments", MAX_DEPTH)


def _fitted(value: Any, schema: Any, root: Mapping[str, Any], where: str, depth: int) -> Any:  # noqa: ANN401
    if not isinstance(schema, Mapping) or not depth:
        return value
    schema = _resolved(schema, root)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _first(value, schema[union], root, where, depth)
    for part in schema.get("allOf", ()):
        value = _fitted(value, part, root, where, depth - 1)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    value = _spelled(value, kinds)
    if kinds and not any(_is_a(value, kind) for kind in kinds):
        raise ValueError(f"{where} must be {' or '.join(kinds)}, got {_shown(value)}")
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if options is not None and not any(_equal(value, option) for option in options):
        raise ValueError(f"{where} must be one of {_shown(list(options))}, got {_shown(value)}")
    if isinstance(value, list):
        items = schema.get("items")
        return [_fitted(item, items, root, f"{where}[{i}]", depth - 1)
                for i, item in enumerate(value)]  # fmt: skip
    if isinstance(value, dict):
        return _object(value, schema, root, where, depth)
    return value


def _object(
    value: dict[str, Any],
    schema: Mapping[str, Any],
    root: Mapping[str, Any],
    where: str,
    depth: int,
) -> dict[str, Any]:
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
    lacking = [name for name in schema.get("required", ()) if name not in value]
    if lacking:
        raise ValueError(f"the argument {lacking[0]!r} is missing")
    unknown = [name for name in value if name not in properties]
    if unknown and (extra is False or (properties and "additionalProperties" not in schema)):
        names = ", ".join(properties) or "none"
        raise ValueError(f"there is no argument {unknown[0]!r}; there is {names}")
    return {
        name: _fitted(item, properties.get(name, extra), root, f"the argument {name!r}", depth - 1)
        for name, item in value.items()
    }


def _first(
    value: Any,  # noqa: ANN401 - any JSON
    schemas: Sequence[Any],
    root: Mapping[str, Any],
    where: str,
    depth: int,
) -> Any:  # noqa: ANN401
    reasons = []
    for schema in schemas:
        try:
            return _fitted(value, schema, root, where, depth - 1)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; or ".join(dict.fromkeys(reasons)))


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return schema
    target: Any = root
    for key in reference.removeprefix("#/").split("/"):
        target = target.get(key, {}) if isinstance(target, Mapping) else {}
    return target if isinstance(target, Mapping) else {}


def _spelled(value: Any, kinds: Sequence[str]) -> Any:  # noqa: ANN401 - any JSON
    """Return what a text spells, where text is not among the types and what it spells is."""
    if isinstance(value, float) and value.is_integer() and kinds == ["integer"]:
        return int(value)
    if not isinstance(value, str) or not kinds or "string" in kinds:
        return value
    try:
        spelled = json.loads(value.strip())
    except (ValueError, RecursionError):
        return value
    return spelled if any(_is_a(spelled, kind) for kind in kinds) else value


def _is_a(value: Any, kind: str) -> bool:  # noqa: ANN401 - any JSON
    if isinstance(value, bool):  # in Python a bool is an int, in JSON it is not
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES.get(kind, (object,)))


def _equal(left: Any, right: Any) -> bool:  # noqa: ANN401 - any JSON
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def _shown(value: object) -> str:
    return f"{json.dumps(value, ensure_ascii=False, default=repr):.80}"
