"""`json_schema`: is the response JSON, and does it fit a schema?

A small subset of JSON Schema, refused by name where a schema goes beyond it: type, enum, const,
required, properties, additionalProperties (true or false), items, minItems, maxItems, minLength,
maxLength, minimum, maximum.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from llmgym.errors import RewardError
from llmgym.messages import Sample
from llmgym.rewards.base import UnitReward
from llmgym.rewards.rules import MAX_CHARACTERS

Check = Callable[[Any, Any], bool]

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
"""Types of JSON values, by the word of JSON Schema."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_type(value: object, type_names: str | list[str]) -> bool:
    names = [type_names] if isinstance(type_names, str) else type_names
    if isinstance(value, bool):  # in Python a bool is an int, in JSON it is not
        return "boolean" in names
    if isinstance(value, float) and value.is_integer() and "integer" in names:
        return True
    return any(isinstance(value, TYPES[name]) for name in names)


def _equal(left: object, right: object) -> bool:
    # 1 == True in Python; their JSON texts differ.
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


CHECKS: dict[str, Check] = {
    "type": _has_type,
    "enum": lambda value, options: any(_equal(value, option) for option in options),
    "const": _equal,
    "required": lambda value, names: not isinstance(value, dict) or set(names) <= set(value),
    "minItems": lambda value, bound: not isinstance(value, list) or len(value) >= bound,
    "maxItems": lambda value, bound: not isinstance(value, list) or len(value) <= bound,
    "minLength": lambda value, bound: not isinstance(value, str) or len(value) >= bound,
    "maxLength": lambda value, bound: not isinstance(value, str) or len(value) <= bound,
    "minimum": lambda value, bound: not _is_number(value) or value >= bound,
    "maximum": lambda value, bound: not _is_number(value) or value <= bound,
}
NESTED = ("properties", "additionalProperties", "items")
REMARKS = ("title", "description", "$schema", "$id", "examples", "default")


def fits(value: object, schema: Mapping[str, Any]) -> bool:
    """Return whether a JSON value fits a schema of the subset above."""
    if not all(check(value, schema[key]) for key, check in CHECKS.items() if key in schema):
        return False
    if isinstance(value, list):
        return "items" not in schema or all(fits(item, schema["items"]) for item in value)
    if not isinstance(value, dict):
        return True
    properties = schema.get("properties", {})
    if schema.get("additionalProperties", True) is False and set(value) - set(properties):
        return False
    return all(fits(value[key], sub) for key, sub in properties.items() if key in value)


def check_schema(schema: Mapping[str, Any], where: str = "schema") -> None:
    """Check that a schema stays inside the subset.

    Raises:
        RewardError: it uses another keyword or an unknown type; names the place.
    """
    unknown = sorted(set(schema) - {*CHECKS, *NESTED, *REMARKS})
    if unknown:
        raise RewardError(f"{where} uses {unknown[0]}; understood are {', '.join(CHECKS)}")
    type_names = schema.get("type", [])
    for name in [type_names] if isinstance(type_names, str) else type_names:
        if name not in TYPES:
            raise RewardError(f"{where}.type is {name!r}; it must be one of {', '.join(TYPES)}")
    if not isinstance(schema.get("additionalProperties", True), bool):
        raise RewardError(f"{where}.additionalProperties must be true or false")
    for key, sub in schema.get("properties", {}).items():
        check_schema(sub, f"{where}.properties.{key}")
    if "items" in schema:
        check_schema(schema["items"], f"{where}.items")


@final
@dataclass(frozen=True, kw_only=True)
class JsonSchema(UnitReward):
    """0.5 for a response that is JSON, 1.0 where it also fits the schema.

    Attributes:
        schema: one for all tasks, in the subset that this file's header lists.
    """

    schema: Mapping[str, Any]
    name: str = "json_schema"

    def __post_init__(self) -> None:
        check_schema(self.schema)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Parse and check each response."""
        return [self._worth(str(sample.text)) for sample in samples]

    def _worth(self, text: str) -> float:
        if len(text) > MAX_CHARACTERS:
            return 0.0
        try:
            value = json.loads(text, parse_constant=_refuse)
            return 1.0 if fits(value, self.schema) else 0.5
        except (ValueError, RecursionError):  # comparing nests a little deeper than reading
            return 0.0


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
