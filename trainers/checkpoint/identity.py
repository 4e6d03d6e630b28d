"""What makes a run this run: its settings and versions, compared at resume and between ranks."""

import copy
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from pydantic import ValidationError

from trainers.config import SCHEMA, Config
from trainers.config.files import changed_settings
from trainers.config.former_names import rename_settings
from trainers.config.python_parts import LAMBDA, PREFIX
from trainers.config.secrets import without_secrets
from trainers.distributed.collectives import World, gather
from trainers.errors import BackendError, ConfigError
from trainers.redaction.redact import HIDDEN

CHANGEABLE = frozenset(
    {
        "log",
        "eval",
        "checkpoint",
        "backend",
        "run.dir",
        "run.name",
        "ppo.num_iterations",
        "distill.max_tokens",
        "distill.max_minutes",
        "generation.vllm",
        "generation.servers",
        "generation.timeout_seconds",
        "generation.tolerance",
        "data.too_long",
    }  # what is too long has not been met yet where it stops the run
)
"""Settings, and sections of them, that may differ when a run is resumed."""

OF_BASE = frozenset({"model", "tokenizer", "data", "sft", "run.seed", "run.date"})
"""Settings that decide what the model is that PPO starts from."""

_PACKAGES = ("torch", "transformers", "safetensors", "numpy", "gymnasium")
_log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """Return the versions of Python and of what a run's numbers depend on."""
    return {"python": python_version(), **{name: version(name) for name in _PACKAGES}}


def identity_of(config: Config, world: World) -> dict[str, Any]:
    """Return what a checkpoint must fit to be continued; kept in its manifest.

    Its `digests` are of what lies behind the settings; they come as it is read. Its `code` are
    digests of source code that settings name.
    """
    return {
        "config": without_secrets(config),
        "digest": config.digest,
        "versions": versions(),
        "world_size": world.size,
        "digests": {},
        "code": {},
    }


def check_settings(
    before: Config, config: Config, run: Path, only: frozenset[str] | None = None
) -> None:
    """Refuse to continue with settings that would make it another run.

    Args:
        before: settings of the run so far.
        config: settings now.
        run: its folder, for the message.
        only: sections and settings that are compared; None: all but those that may change.

    Raises:
        ConfigError: names each setting that differs and both values.
    """
    changes = []
    for change in changed_settings(config, before):
        key = change.split(" ")[0]
        counts = not _within(key, CHANGEABLE) and (only is None or _within(key, only))
        if counts and HIDDEN not in change:
            changes.append(change)
    if changes:
        raise ConfigError(
            f"cannot resume {run}: {', '.join(changes)}. Undo it, or start anew with "
            "--run.name NAME."
        )


def check_identity(saved: Mapping[str, Any], config: Config, run: Path) -> None:
    """Refuse to continue with settings that would make it another run; other versions warn.

    Args:
        saved: what `identity_of` returned when the checkpoint was saved.

    Raises:
        ConfigError: names each setting that differs and both values.
    """
    try:
        settings = copy.deepcopy(saved["config"])
        rename_settings(settings)
        before = SCHEMA.validate_json(json.dumps(settings))
    except ValidationError as error:
        raise ConfigError(
            f"cannot resume {run}: this version does not know its settings ({error.errors()[0]}). "
            "Start anew with --run.name NAME."
        ) from error
    check_settings(before, config, run)
    now = versions()
    for name, was in saved["versions"].items():
        if now.get(name) != was:
            _log.warning("saved with %s %s, now %s: bits may differ", name, was, now.get(name))


def check_digests(saved: Mapping[str, Any], digests: Mapping[str, str], run: Path) -> None:
    """Refuse to continue where a file behind an unchanged setting holds something else now.

    Args:
        saved: the identity in the checkpoint; what it does not know is not compared.
        digests: of what was read now, by what it is.
        run: its folder, for the message.

    Raises:
        ConfigError: names what differs.
    """
    before = saved["digests"]
    changed = [
        f"{name} ({before[name]} -> {now})"
        for name, now in digests.items()
        if before.get(name, now) != now
    ]
    if changed:
        raise ConfigError(
            f"cannot resume {run}: the settings are the same, but not what they lead to: other "
            f"{', other '.join(changed)}. Put back the files that were there, or start anew with "
            "--run.name NAME."
        )


def check_code(saved: Mapping[str, Any], code: Mapping[str, str], run: Path) -> None:
    """Warn of source code that has changed: it may be a mistake that was corrected.

    Args:
        saved: the identity in the checkpoint; what it does not know is not compared.
        code: digests of source code now, by its name; empty where it has no source.
        run: its folder, for the message.

    Raises:
        ConfigError: a lambda is another one: nothing but its source says which it was.
    """
    before = saved.get("code", {})
    for name, now in code.items():
        was = before.get(name)
        if not was or not now or was == now:
            continue
        if name.endswith(f"{PREFIX}{LAMBDA}"):
            raise ConfigError(
                f"cannot resume {run}: the {name} has another source ({was} -> {now}). Give the "
                "lambda that was given, or start anew with --run.name NAME. A function with a name "
                "may be corrected in between."
            )
        _log.warning("the source of %s has changed since the checkpoint (%s -> %s): from here on "
                     "it may mean something else", name, was, now)  # fmt: skip


def same_everywhere(**named: str) -> None:
    """Check that every rank has the same settings, versions, data, tokenizer.

    Args:
        named: digests or versions, by what they are of.

    Raises:
        BackendError: on every rank; names the first rank that differs, and in what.
    """
    everyone = gather(named)
    for rank, theirs in enumerate(everyone):
        differing = [key for key in named if theirs.get(key) != everyone[0].get(key)]
        if differing:
            differences = ", ".join(
                f"{k} {everyone[0].get(k)} and {theirs.get(k)}" for k in differing
            )
            raise BackendError(
                f"rank 0 and rank {rank} differ: {differences}. Start every rank with the same "
                "command, code and files."
            )


def _within(key: str, settings: frozenset[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[: i + 1]) in settings for i in range(len(parts)))
