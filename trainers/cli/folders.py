"""Settings that come from a run folder: what is refused before any code that they name runs."""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainers.cli.arguments import Launch
from trainers.config import Config
from trainers.config.files import layer, read
from trainers.config.python_parts import refuse_command_line
from trainers.errors import ConfigError
from trainers.inference.targets import Target
from trainers.run_dir.trust import named_code, note, untrusted, untrusted_error

SETTINGS = "config.yaml"
WRITTEN = ("status.json", "command.txt", "environment.txt", "metrics.jsonl")
"""Files that a run writes beside its settings."""


def run_of(file: Path, config: Config) -> Path | None:
    """Return the run folder that a file of settings belongs to, None for a file of its own."""
    if file.name != SETTINGS or not file.is_file():
        return None
    is_run = any((file.parent / name).exists() for name in WRITTEN)
    is_own = file.parent.resolve() == (Path(config.run.dir) / config.run.name).resolve()
    return file.parent if is_run or is_own else None


def check_files(launch: Launch, config: Config, command: Sequence[str]) -> None:
    """Look at the run folders that a start takes its settings from.

    Args:
        launch: what was typed.
        config: the settings that it means.
        command: the words of it.

    Raises:
        ConfigError: only Python can build what the settings name, the run to continue is in another
            place, or the settings name code that this user has not run.
    """
    folders = [run for file in map(layer, launch.files) if (run := run_of(file, config))]
    refuse_command_line(config, [*folders, Path(config.run.dir) / config.run.name][0])
    if os.environ.get("RANK", "0") != "0":  # nothing runs before all ranks have met
        return
    typed = [*launch.plugins, *_texts(launch.overrides)]
    for run in folders:
        if launch.resume and not {"run.dir", "run.name"} & launch.overrides.keys():
            _refuse_moved(run, config)
        before = read([run / SETTINGS])
        allow(run, before, config, typed=typed, command=command, trust=launch.trust)


def check_target(
    target: Target, config: Config, *, typed: Iterable[str], command: Sequence[str], trust: bool
) -> None:
    """Look at the run that a model is taken from, before its environment and reward are built.

    Args:
        target: the model.
        config: the settings that it is looked at with.
        typed: addresses and modules that the user has just named.
        command: the verb and its words.
        trust: whether the user says that the code of the run may run.

    Raises:
        ConfigError: as `check_files`.
    """
    if target.run_dir is not None:
        refuse_command_line(config, target.run_dir)
        words = ["llmgym", *command]
        allow(target.run_dir, target.config, config, typed=typed, command=words, trust=trust)


def allow(
    run: Path, before: Config, config: Config, *, typed: Iterable[str], command: Sequence[str],
    trust: bool,
) -> None:  # fmt: skip
    """Let code run that this user has run before, or trusts now.

    Args:
        run: the folder whose settings name it.
        before: its settings, as they are in it.
        config: those that are used.
        typed: addresses and modules that the user has just named.
        command: what was typed.
        trust: whether the user says that it may run.

    Raises:
        ConfigError: it must be trusted first; names it, and the command.
    """
    used = {part.address for part in named_code(config)}
    code = [part for part in untrusted(run, before, [*typed]) if part.address in used]
    if code and not trust:
        is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
        again = f"{shlex.join(command)} --trust" if is_alone else "the same command with --trust"
        raise untrusted_error(run, code, again)
    for part in code:
        print(f"trusted  {part.setting}: {part.address}", file=sys.stderr)
    if code:
        note(run, before)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _refuse_moved(run: Path, config: Config) -> None:
    """Refuse to continue a run by settings that name another folder than the one they are in."""
    named = Path(config.run.dir) / config.run.name
    if named.resolve() != run.resolve():
        place = shlex.join(["--run.dir", str(run.parent), "--run.name", run.resolve().name])
        raise ConfigError(
            f"{run} is not where its settings say, which is {named}: it was moved or copied, or "
            f"this is another folder than the one it was started in. To continue it where it is, "
            f"add\n{place}"
        )
