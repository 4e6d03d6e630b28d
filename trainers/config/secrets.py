"""Settings without their secrets, as they are written, and with them again. No torch.

A secret setting is written as `(hidden)`. What reads it back takes its value from the environment:
`rewards.0.kwargs.api_key` from LLMGYM_SECRET_REWARDS_0_KWARGS_API_KEY.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from trainers.config.schema import Path, dotted, entries
from trainers.config.settings import SCHEMA, Config
from trainers.errors import ConfigError
from trainers.redaction.redact import HIDDEN, hidden, redacted, remember_secrets, variable


def without_secrets(config: Config) -> dict[str, Any]:
    """Return every setting as plain values, a secret as `(hidden)`."""
    tree = hidden(SCHEMA.dump_python(config, mode="json"))
    return {**redacted(tree), "run": tree["run"]}  # its folder is called so anyway


def secret_variables(config: Config) -> list[str]:
    """Return the environment variables that a run with these settings is continued with."""
    return [variable(path) for path, _ in _texts(without_secrets(config))]


def with_secrets(config: Config) -> Config:
    """Return settings with each `(hidden)` replaced by the value of its environment variable.

    Raises:
        ConfigError: a variable is not set; names all that are not.
    """
    tree = SCHEMA.dump_python(config, mode="json")
    remember_secrets(tree)
    texts = list(_texts(tree))
    lacking = [path for path, _ in texts if not os.environ.get(variable(path))]
    if lacking:
        names = ", ".join(map(dotted, lacking))
        commands = "\n".join(f"export {variable(path)}=VALUE" for path in lacking)
        raise ConfigError(
            f"{names}: the value is {HIDDEN}, because no file of a run holds a secret. "
            f"Set it in the environment, then repeat the command:\n{commands}"
        )
    if not texts:
        return config
    for path, _ in texts:
        *inside, last = path
        node: Any = tree
        for part in inside:
            node = node[part]
        node[last] = os.environ[variable(path)]
        remember_secrets({"secret": node[last]})
    return SCHEMA.validate_json(json.dumps(tree))


def _texts(tree: object, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield path and text of every setting that is hidden, whole or in part."""
    if isinstance(tree, str) and HIDDEN in tree:
        yield path, tree
    for key, value in entries(tree):
        yield from _texts(value, (*path, key))
