"""Which code that a run folder names may run without asking. No torch.

Whoever writes a run folder chooses what its settings name: a reward's function, an environment's
module, a wrapper. A start notes in this user's own state folder which run it is and which code it
names. Where no such note fits, `--trust` has to be given once.

$XDG_STATE_HOME/llmgym/runs/DIGEST.json     without it, ~/.local/state/llmgym
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from llmgym.addresses import file_of
from llmgym.rewards.base import REWARDS
from trainers.config import Config
from trainers.config.secrets import without_secrets
from trainers.errors import ConfigError
from trainers.redaction.text_files import write

ADDRESS = re.compile(r"(.*\.py|[^\W\d]\w*(\.[^\W\d]\w*)*):[^\W\d][\w./-]*", re.DOTALL)
"""Text in the arguments of environments and rewards that may lead to code."""
TRUSTED_PACKAGES = ("llmgym", "gymnasium")
"""Packages whose registered environments and rewards are not chosen by a stranger."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Code that settings name.

    Attributes:
        setting: its dotted name.
        address: what the setting leads to: FILE.py:NAME or package.module:NAME.
        file: where it is; None: it was not found.
        digest: SHA-256 of the file; empty where there is none.
    """

    setting: str
    address: str
    file: Path | None
    digest: str


def named_code(config: Config) -> list[Code]:
    """Return the code that settings name; nothing of it is run."""
    code = []
    for setting, address in _addresses(config):
        file = file_of(address)
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file else ""
        code.append(Code(setting=setting, address=address, file=file, digest=digest))
    return code


def _addresses(config: Config) -> Iterator[tuple[str, str]]:
    for number, env in enumerate(config.envs):
        address = env.id if ":" in env.id else _target(env.id)
        yield from _foreign(f"envs.{number}.id", address, is_registered=":" not in env.id)
        yield from _inside(f"envs.{number}.kwargs", env.kwargs)
    for number, reward in enumerate(config.rewards):
        yield from _foreign(f"rewards.{number}.function", reward.function or "")
        address = REWARDS.get(reward.name or "", "")
        yield from _foreign(f"rewards.{number}.name", address, is_registered=True)
        yield from _inside(f"rewards.{number}.kwargs", reward.kwargs)
    yield from _inside("eval.kwargs", config.eval.kwargs)


def _target(id: str) -> str:
    """Return the address behind a registered id, empty where there is none."""
    known = gymnasium.registry.get(id)
    address = known.kwargs.get("target", known.entry_point) if known else ""
    return address if isinstance(address, str) else ""


def _foreign(
    setting: str, address: str, *, is_registered: bool = False
) -> Iterator[tuple[str, str]]:
    is_ours = is_registered and address.partition(":")[0].partition(".")[0] in TRUSTED_PACKAGES
    if address and not is_ours:
        yield setting, address


def _inside(setting: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any JSON
    if isinstance(value, str) and ADDRESS.fullmatch(value):
        yield from _foreign(setting, value)
    elif isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _inside(f"{setting}.{key}", inner)


def note(run: Path, config: Config) -> None:
    """Note that this user started a run, or trusts it; a run that names no code needs no note.

    Args:
        run: its folder.
        config: its settings, as they are in config.yaml.
    """
    code = named_code(config)
    if not code:
        return
    body = {
        "run": str(run.resolve()),
        "settings": _settings(config),
        "code": {part.address: part.digest for part in code},
    }
    try:
        file = _file(run)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (file.parent, file.parent.parent):
            folder.chmod(0o700)
        write(file, json.dumps(body, indent=1) + "\n")
    except OSError as error:
        _log.warning(
            "could not note that %s is yours (%s): a later eval, play or --resume of it needs "
            "--trust. Set XDG_STATE_HOME to a folder that you can write.", run, error,
        )  # fmt: skip


def untrusted(run: Path, config: Config, typed: Collection[str] = ()) -> list[Code]:
    """Return the code that a run's settings name and that no note of this user covers.

    Args:
        run: its folder.
        config: its settings, as they are in config.yaml.
        typed: addresses and modules that the user has just named, which need no note.
    """
    code = [
        part
        for part in named_code(config)
        if not _is_typed(part.address, typed) and (part.file or not _is_file(part.address))
    ]
    if not code:
        return []
    noted = _noted(run)
    if noted.get("settings") != _settings(config):
        return code
    return [part for part in code if noted["code"].get(part.address) != part.digest]


def untrusted_error(run: Path, code: Collection[Code], command: str) -> ConfigError:
    """Return the error that names code which would run, and the command that lets it."""
    lines = [f"  {part.setting}: {part.address}, {_where(part)}" for part in code]
    return ConfigError(
        f"{run} names code that would run, and this user has not started that run here with that "
        "code:\n" + "\n".join(lines) + "\nRead it. To run it, now and as long as it stays the "
        f"same:\n{command}"
    )  # fmt: skip


def _where(part: Code) -> str:
    return f"{part.file}, sha256 {part.digest[:12]}" if part.file else "without a file"


def _is_file(address: str) -> bool:
    return address.rpartition(":")[0].endswith(".py")


def _is_typed(address: str, typed: Collection[str]) -> bool:
    module = address.partition(":")[0]
    return address in typed or any(
        module == name or module.startswith(f"{name}.") for name in typed
    )


def _settings(config: Config) -> str:
    """Return the digest of all settings that reach the code: arguments choose what it does.

    A secret is left out: the run folder does not hold it, and keys are renewed.
    """
    tree = without_secrets(config)
    parts = [tree["envs"], tree["rewards"], tree["eval"]["kwargs"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _state() -> Path:
    for place in (os.environ.get("XDG_STATE_HOME", ""), os.path.expanduser("~/.local/state")):
        if os.path.isabs(place):
            return Path(place) / "llmgym"
    raise OSError("this user has no home folder")


def _file(run: Path) -> Path:
    return _state() / "runs" / f"{hashlib.sha256(os.fsencode(run.resolve())).hexdigest()}.json"


def _noted(run: Path) -> dict[str, Any]:
    """Return the note of a run; empty where there is none that only this user can have written."""
    try:
        file = _file(run)
        facts = file.parent.stat()
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            _log.warning("%s can be written by others, so its notes do not count: chmod 700 it",
                         file.parent)  # fmt: skip
            return {}
        if file.resolve().is_relative_to(run.resolve()):  # whoever wrote the run wrote the note
            return {}
        note_read = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        note_read if isinstance(note_read, dict) and isinstance(note_read.get("code"), dict) else {}
    )
