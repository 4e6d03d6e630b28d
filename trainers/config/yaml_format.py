"""YAML of settings: what plain text means, and how numbers and lists are printed."""

import re
from typing import Any, cast

import yaml

DIGITS = r"(0|[1-9][0-9_]*)"
POWER = r"[eE][-+]?[0-9]+"
INTEGER = re.compile(rf"[-+]?{DIGITS}$")
FLOAT = re.compile(rf"[-+]?({DIGITS}\.[0-9]*({POWER})?|{DIGITS}{POWER}|\.[0-9]+({POWER})?)$")
BOOLEAN = re.compile(
    r"(true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)$"
)
NULL = re.compile(r"(~|null|Null|NULL|)$")
TYPED: tuple[tuple[str, re.Pattern[str], tuple[str, ...]], ...] = (
    ("tag:yaml.org,2002:int", INTEGER, tuple("-+0123456789")),
    ("tag:yaml.org,2002:float", FLOAT, tuple("-+.0123456789")),
    ("tag:yaml.org,2002:bool", BOOLEAN, tuple("tTfFyYnNoO")),
    ("tag:yaml.org,2002:null", NULL, ("~", "n", "N", "")),
)
"""Tag and pattern of plain text that is not text, and the characters that it begins with."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return `TYPED` by first character, as yaml looks it up."""
    firsts = dict.fromkeys(first for *_, begins in TYPED for first in begins)
    return {
        first: [(tag, pattern) for tag, pattern, begins in TYPED if first in begins]
        for first in firsts
    }


class Loader(yaml.SafeLoader):
    """YAML in which 3e-6 is a number, and dates, times and octal numbers are text.

    Keys are text and unique; aliases, which can grow without bound, are refused.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = _resolvers()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node; an alias raises."""
        events = cast(Any, self)  # the stubs of yaml give these methods no types
        if events.check_event(yaml.AliasEvent):
            mark = events.peek_event().start_mark
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


class Dumper(yaml.SafeDumper):
    """YAML that this loader and a plain one read alike: 3.0e-6, short lists on one line."""


def _number(dumper: Any, value: float) -> yaml.ScalarNode:  # noqa: ANN401 - untyped in stubs
    mantissa, mark, exponent = repr(value).partition("e")
    whole = mantissa if "." in mantissa else f"{mantissa}.0"
    text = f"{whole}e{int(exponent):+d}".replace("e-0", "e-") if mark else repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _text(dumper: Any, value: str) -> yaml.ScalarNode:  # noqa: ANN401 - untyped in stubs
    style = '"' if FLOAT.match(value) or INTEGER.match(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    is_flat = not any(isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=is_flat)


Dumper.add_representer(float, _number)
Dumper.add_representer(str, _text)
Dumper.add_representer(list, _list)
