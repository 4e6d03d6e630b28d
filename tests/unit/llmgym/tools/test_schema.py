"""Schemas of functions, and arguments that fit them."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal

import pytest

from llmgym.errors import EnvContractError
from llmgym.tools.schema import fitted, signature_schema, type_schema
from tests.unit.llmgym.tools import functions


class Color(Enum):
    RED = "red"
    BLUE = "blue"


def test_a_schema_has_names_types_defaults_and_descriptions():
    about, schema = signature_schema(functions.describe)
    assert about == "Describe a text.\n\nIn any language."
    assert schema == {
        "type": "object",
        "properties": {
            "text": {
                "type": "string",
                "description": "what is described, on as many lines as it takes.",
            },
            "style": {"type": "string", "enum": ["short", "long"], "description": "how."},
            "tags": {
                "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
                "description": "words.",
            },
        },
        "required": ["text", "style"],
    }


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (Any, {}),
        (int | None, {"type": ["integer", "null"]}),
        (int | int, {"type": "integer"}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (Sequence[str], {"type": "array", "items": {"type": "string"}}),
        (dict, {"type": "object"}),
        (Mapping[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
        (Literal["a", 2], {"type": ["string", "integer"], "enum": ["a", 2]}),
        (Color, {"enum": ["red", "blue"]}),
    ],
)
def test_every_type_that_json_holds_has_its_schema(hint, schema):
    assert type_schema(hint, "x") == schema


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (functions.untyped, "parameter 'a' of the tool untyped has no type"),
        (functions.of_bytes, "is a bytes, which JSON cannot hold"),
        (functions.many, "cannot be given by name"),
    ],
)
def test_a_parameter_that_no_schema_describes_is_refused(function, message):
    with pytest.raises(EnvContractError, match=message):
        signature_schema(function)


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "s": {"type": "string"},
        "flag": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "integer"}},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "kind": {"enum": ["a", "b"]},
        "point": {"$ref": "#/$defs/point"},
    },
    "$defs": {
        "point": {"type": "object", "properties": {"y": {"type": "integer"}}, "required": ["y"]}
    },
}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"n": 3, "x": 3, "s": "3"}, {"n": 3, "x": 3, "s": "3"}),
        ({"n": "3", "x": " 2.5 ", "s": "[1]"}, {"n": 3, "x": 2.5, "s": "[1]"}),
        ({"n": 3.0}, {"n": 3}),
        ({"flag": "true", "list": "[1, 2]"}, {"flag": True, "list": [1, 2]}),
        ({"list": ["1", 2]}, {"list": [1, 2]}),
        ({"either": "null"}, {"either": None}),
        ({"either": "7"}, {"either": 7}),
        ({"kind": "b", "point": {"y": "4"}}, {"kind": "b", "point": {"y": 4}}),
        ({"point": '{"y": 4}'}, {"point": {"y": 4}}),
    ],
)
def test_arguments_that_fit_are_taken_and_spelled_values_are_read(given, taken):
    result = fitted(given, SCHEMA)
    assert result == taken
    assert [type(value) for value in result.values()] == [type(value) for value in taken.values()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": True}, "the argument 'n' must be integer, got true"),
        ({"n": 2.5}, "must be integer"),
        ({"n": "three"}, "must be integer"),
        ({"flag": 1}, "must be boolean"),
        ({"list": [1, "x"]}, r"the argument 'list'\[1\] must be integer"),
        ({"either": "x"}, "must be integer.*; or .* must be null"),
        ({"kind": "c"}, r'must be one of \["a", "b"\], got "c"'),
        ({"point": {}}, "the argument 'y' is missing"),
        ({"m": 1}, "there is no argument 'm'; there is n, x"),
    ],
)
def test_arguments_that_do_not_fit_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        fitted(given, SCHEMA)


def test_a_reference_to_itself_ends():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    value: dict = {}
    for _ in range(50):
        value = {"next": value}
    assert fitted(value, schema) == value
