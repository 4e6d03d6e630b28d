"""The folder of a run: claimed, described and locked. Rank 0 writes; every rank has its own log.

config.yaml  command.txt  environment.txt  status.json  run.lock  python.json
logs/attempt_N/rank_R.log  logs/latest  checkpoints/  metrics.jsonl  samples.jsonl
"""

import json
import logging
import math
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO, final

from trainers.checkpoint.identity import OF_BASE, check_settings, same_everywhere, versions
from trainers.checkpoint.manifest import published
from trainers.config import Config
from trainers.config.files import dump, read
from trainers.config.python_parts import RECORD, PythonPart, record, refuse_other_parts
from trainers.distributed.collectives import World, from_main
from trainers.errors import CheckpointError, ConfigError
from trainers.redaction.redact import redact
from trainers.redaction.text_files import append, write
from trainers.run_dir.lock import RunLock
from trainers.run_dir.record import DONE, describe_progress, read_status, refuse_work

RunStatus = Literal["running", "finished", "converged", "failed", "interrupted"]

FILES = ("config.yaml", "command.txt", "environment.txt", "status.json", RECORD)
FILES += ("metrics.jsonl", "samples.jsonl", "report.html")
"""Files that a run writes in its folder."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")
PACKAGES = ("llmgym", "trainers")
SECONDS_BETWEEN_UPDATES = 1.0
"""Between two iterations that status.json shows."""

_log = logging.getLogger(__name__)


@final
class RunFolder:
    """An open run folder, whose lock rank 0 holds; `close` gives it back."""

    def __init__(self, path: Path, attempt: int, world: World, lock: RunLock) -> None:
        self.path = path
        self.attempt = attempt
        self._world = world
        self._lock = lock
        self._handler = _log_to(self.log_file)
        self._shown_at = -math.inf
        if world.is_main:
            lock.keep()

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def log_file(self) -> Path:
        """This rank's log of this attempt."""
        return self.path / "logs" / f"attempt_{self.attempt}" / f"rank_{self._world.rank}.log"

    @property
    def log_stream(self) -> TextIO:
        """The open log, for what no logger can write: the stacks of a run that hangs."""
        stream = self._handler.stream
        assert stream is not None, "the log is opened at once"
        return stream

    def set_status(self, status: RunStatus, **facts: Any) -> None:
        """Replace status.json in one step; ranks other than 0 do nothing.

        Args:
            status: how the run stands.
            facts: what else is worth knowing: stage, iteration, num_iterations, reason.
        """
        if not self._world.is_main:
            return
        when = datetime.now(UTC).isoformat(timespec="seconds")
        fields = {"status": status, "attempt": self.attempt, **facts, "updated": when}
        clean = {
            key: redact(value) if isinstance(value, str) else value for key, value in fields.items()
        }
        try:
            write(self.path / "status.json", json.dumps(clean, indent=1) + "\n")
        except OSError as error:  # it informs; the work must not be lost for it
            _log.warning("%s/status.json is out of date: %s", self.path, error.strerror)

    def show_progress(self, **facts: Any) -> None:
        """Set the status to running, at most once a second: small models iterate faster.

        Args:
            facts: as those of `set_status`.
        """
        now = time.monotonic()
        if now - self._shown_at >= SECONDS_BETWEEN_UPDATES:
            self._shown_at = now
            self.set_status("running", **facts)

    def close(self) -> None:
        """Remove the lock and end the log."""
        if self._world.is_main:
            self._lock.release()
        for name in PACKAGES:
            logging.getLogger(name).removeHandler(self._handler)
        with suppress(OSError):  # a full disk: what could not be logged is lost
            self._handler.close()


def open_run(
    config: Config,
    *,
    resume: bool | Path,
    clean: bool,
    command: Sequence[str],
    world: World,
    parts: Sequence[PythonPart] = (),
) -> RunFolder:
    """Claim the folder of a run and describe the run in it; called by every rank.

    Args:
        config: settings; `run.dir` and `run.name` say where.
        resume: continue what is there, or the checkpoint at a path.
        clean: move what is there to NAME.old-N.
        command: the words this start was made with.
        parts: what Python gave.

    Raises:
        ConfigError: on every rank, if the folder exists and neither was asked for, or both were,
            or if it is continued with settings of another run.
        CheckpointError: on every rank, if it cannot be written or another run is in it.
        BackendError: on every rank, if ranks differ in settings or versions.
    """
    same_everywhere(settings=config.digest, resume=str(resume), clean=str(clean), **versions())
    if resume and clean:
        raise ConfigError("--resume continues a run and --clean moves it away: give one of them.")
    path = Path(config.run.dir) / config.run.name
    lock = RunLock(path / "run.lock")
    try:
        while not from_main(lock.is_free):
            pass
        attempt = from_main(
            lambda: _claim(lock, config, resume=resume, clean=clean, command=command, parts=parts)
        )
    except OSError as error:
        raise CheckpointError(
            f"cannot write in {path}: {error.strerror}, {error.filename or path}. Make it "
            "writable, or choose another place with --run.dir DIR."
        ) from error
    return RunFolder(path, attempt, world, lock)


class _Redacting(logging.Formatter):
    """Formats a record, traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact(super().format(record))


def _claim(
    lock: RunLock,
    config: Config,
    *,
    resume: bool | Path,
    clean: bool,
    command: Sequence[str],
    parts: Sequence[PythonPart],
) -> int:
    """Take the lock before anything is looked at or moved: of two starts at once, one gets it."""
    path = lock.file.parent
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    _close_to_others(path)
    lock.take()
    try:
        if is_new and resume:
            _log.warning("there is no %s to resume: it starts at 0", path)
        elif resume:
            refuse_other_parts(path, config)
            _refuse_other_settings(path, config)
            if resume is True:
                _refuse_lost_checkpoints(path, config)
        elif clean and not is_new:
            _move_away(lock)
        else:
            refuse_work(path)
        _refuse_folders(path)
        attempt = _describe(path, config, command)
        _record_parts(path, parts)
        return attempt
    except BaseException:  # Ctrl-C as well
        lock.release()
        raise


def _close_to_others(path: Path) -> None:
    """Let its user alone enter the folder; one that is shared on purpose belongs to another."""
    try:
        path.chmod(0o700)
    except PermissionError:
        _log.warning("%s belongs to another user, who decides who can read this run", path)


def _move_away(lock: RunLock) -> None:
    """Give a run another name, and hold the lock in an empty folder of the old one."""
    path = lock.file.parent
    aside = path.rename(_free_name(path))
    (aside / lock.file.name).unlink()
    path.mkdir(mode=0o700, exist_ok=True)
    lock.take()


def _refuse_other_settings(path: Path, config: Config) -> None:
    """Raise before anything is written if what is there was made with other settings."""
    file = path / "config.yaml"
    if file.is_file() and published(path / "checkpoints"):
        check_settings(read([file]), config, path)
    elif file.is_file() and (path / "base").exists():
        check_settings(read([file]), config, path, OF_BASE)


def _refuse_folders(path: Path) -> None:
    """Refuse a folder where a file of the run is to be written, before anything is loaded."""
    for file in (path / name for name in FILES):
        if file.is_dir():
            raise ConfigError(
                f"{file} is a folder, and the run writes a file of that name. Move it away:\n"
                f"{shlex.join(['mv', str(file), f'{file}.moved'])}"
            )


def _refuse_lost_checkpoints(path: Path, config: Config) -> None:
    """Refuse to continue where a model was learned and what would continue it is gone.

    A start that was stopped before its first checkpoint has no model/ yet, and begins again. What
    the supervised stage learned is in base/, and is copied again.
    """
    stages = {"ppo": config.ppo.num_iterations, "reward_model": config.reward_model.num_epochs}
    stage = next((name for name, count in stages.items() if count), "sft")
    is_there = bool(published(path / "checkpoints", stage))
    is_there = is_there or (stage == "sft" and (path / "base").is_dir())
    if not is_there and ((path / "model").exists() or read_status(path).get("status") in DONE):
        on = "" if config.is_control else f" --model.path {path}/model --sft.num-epochs 0"
        raise ConfigError(
            f"{path} has trained ({describe_progress(path)}), and no checkpoint of it is left in "
            f"{path}/checkpoints: to continue would begin again at 0, over its own model. Put them "
            f"back, or start another run without --resume: --run.name {path.name}-2{on}"
        )


def _describe(path: Path, config: Config, command: Sequence[str]) -> int:
    """Write what the run is; return the number of this attempt."""
    logs = path / "logs"
    attempt = 1 + max((int(folder.name[8:]) for folder in logs.glob("attempt_*")), default=0)
    folder = logs / f"attempt_{attempt}"
    folder.mkdir(parents=True)
    (path / "checkpoints").mkdir(mode=0o700, exist_ok=True)
    write(path / "config.yaml", dump(config))
    append(path / "command.txt", f"attempt {attempt}: {redact(shlex.join(command))}\n")
    append(path / "environment.txt", _environment(attempt))
    _point(logs / "latest", folder.name)
    return attempt


def _record_parts(path: Path, parts: Sequence[PythonPart]) -> None:
    """Write where the objects that Python gave are written, for who continues the run."""
    if parts:
        write(path / RECORD, record(parts))
    else:
        (path / RECORD).unlink(missing_ok=True)


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.old-{number}")):
        number += 1
    return path.with_name(f"{path.name}.old-{number}")


def _environment(attempt: int) -> str:
    """Describe machine and packages: launcher variables only, never the whole environment."""
    facts = {
        **versions(),
        "commit": _commit(),
        "host": socket.gethostname(),
        **{name: os.environ[name] for name in LAUNCHER if name in os.environ},
    }
    return f"attempt {attempt}\n" + "".join(f"  {key}: {facts[key]}\n" for key in facts)


def _commit() -> str:
    """Return the commit this code is at, `unknown` outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _log_to(file: Path) -> logging.FileHandler:
    """Send the records of our packages to `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(handler)
    return handler


def _point(link: Path, target: str) -> None:
    """Make `link` a link to `target`; a copy of a run, where it is a folder, keeps that."""
    if link.is_dir() and not link.is_symlink():
        return
    draft = link.with_name(f".{link.name}-{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
