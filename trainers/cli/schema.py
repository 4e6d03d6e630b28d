"""`llmgym schema`: every setting as a JSON schema, or one of them in words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainers.cli.options import parse_options
from trainers.config import SCHEMA, Config, schema
from trainers.config.files import parse
from trainers.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Print every setting as a JSON schema, for editors, or one of them in words."""

    field: str | None = None
    """A setting or a section, such as ppo.kl_coef or ppo."""


def describe_setting(path: schema.Path) -> list[str]:
    """Return one setting in words, or a section as a list of its settings.

    Raises:
        ConfigError: there is no such setting.
    """
    node = schema.at(path)
    if node is None:
        raise ConfigError(schema.unknown(path))
    about = " ".join(node.get("description", "").split())
    inside = path if schema.names(path) else (*path, 0)
    if names := schema.names(inside):
        title = f"{schema.dotted(path)}: {about}" if path else "All sections"
        return [title, *(_line((*inside, name)) for name in names)]
    limits = schema.bounds(node)
    kind = schema.kind(node) if schema.forms(node) != [{}] else "anything"
    lines = [schema.dotted(path), f"  {about}", f"  type     {kind}"]
    lines += [f"  range    {limits}"] if limits else []
    return [*lines, f"  default  {schema.setting_text(_default(path))}"]


def _line(path: schema.Path) -> str:
    about = " ".join((schema.at(path) or {}).get("description", "").split())
    is_section = bool(schema.names(path) or schema.names((*path, 0)))
    value = "" if is_section else f" = {schema.setting_text(_default(path))}"
    return f"  {schema.dotted(path)}{value}\n        {about}"


def _default(path: schema.Path) -> Any:  # noqa: ANN401
    return schema.value_at(SCHEMA.dump_python(Config(), mode="json"), path)


def main(argv: Sequence[str]) -> int:
    """Print the schema."""
    options: Options = parse_options(Options, argv, "schema")
    if options.field is None:
        print(json.dumps(schema.root(), indent=1))
    else:
        print("\n".join(describe_setting(parse(options.field) if options.field else ())))
    return 0
