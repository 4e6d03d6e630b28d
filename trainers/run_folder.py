"""The folder of a run: claimed, described and locked. Rank 0 writes; every rank has its own log.

config.yaml  command.txt  environment.txt  status.json  run.lock
logs/attempt_N/rank_R.log  logs/latest  checkpoints/  metrics.jsonl  samples.jsonl
"""

import json
import logging
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO, final

from trainers.checkpoint.identity import HIDDEN, OF_BASE, check_settings, same_everywhere, versions
from trainers.checkpoint.manifest import published
from trainers.config import Config
from trainers.config_files import dump, read
from trainers.distributed import World, from_main
from trainers.errors import CheckpointError, ConfigError
from trainers.run_record import is_alive, refuse_work

Status = Literal["running", "finished", "converged", "failed", "interrupted"]

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")
PACKAGES = ("llmgym", "trainers")

_SECRET = re.compile(r"(^|_)(key|token|secret|password|passwd|credentials)s?(_|$)", re.IGNORECASE)
_SECRET_OPTION = re.compile(
    r"((?:--[\w.-]*(?:api[-_]?key|token|secret|password)[= ]"
    r"|\b(?:api_?key|token|secret|password)=))(\S+)",
    re.IGNORECASE,
)
_MIN_SECRET = 8  # shorter values of the environment are words that stand in any text
_log = logging.getLogger(__name__)


@final
class RunFolder:
    """An open run folder; `close` gives it back."""

    def __init__(self, path: Path, attempt: int, world: World) -> None:
        self.path = path
        self.attempt = attempt
        self._world = world
        self._handler = _log_to(self.log_file)

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

    def set_status(self, status: Status, **facts: Any) -> None:
        """Replace status.json in one step; ranks other than 0 do nothing.

        Args:
            status: how the run stands.
            facts: what else is worth knowing: stage, iteration, num_iterations, reason.
        """
        if not self._world.is_main:
            return
        when = datetime.now(UTC).isoformat(timespec="seconds")
        said = {"status": status, "attempt": self.attempt, **facts, "updated": when}
        try:
            _replace(self.path / "status.json", redact(json.dumps(said, indent=1)) + "\n")
        except OSError as error:  # it informs; the work must not be lost for it
            _log.warning("%s/status.json is out of date: %s", self.path, error.strerror)

    def close(self) -> None:
        """Remove the lock and end the log."""
        if self._world.is_main:
            (self.path / "run.lock").unlink(missing_ok=True)
        for name in PACKAGES:
            logging.getLogger(name).removeHandler(self._handler)
        with suppress(OSError):  # a full disk: what could not be logged is lost
            self._handler.close()


def open_run(
    config: Config, *, resume: bool, clean: bool, command: Sequence[str], world: World
) -> RunFolder:
    """Claim the folder of a run and describe the run in it; called by every rank.

    Args:
        config: settings; `run.dir` and `run.name` say where.
        resume: continue what is there.
        clean: move what is there to NAME.old-N.
        command: the words this start was made with.

    Raises:
        ConfigError: on every rank, if the folder exists and neither was asked for, or both were,
            or if it is continued with settings of another run.
        CheckpointError: on every rank, if it cannot be written or another run is in it.
        BackendError: on every rank, if ranks differ in settings or versions.
    """
    same_everywhere(settings=config.digest, resume=str(resume), clean=str(clean), **versions())
    path = Path(config.run.dir) / config.run.name
    try:
        attempt = from_main(
            lambda: _claim(path, config, resume=resume, clean=clean, command=command)
        )
    except OSError as error:
        raise CheckpointError(
            f"cannot write in {path}: {error.strerror}. Make it writable, or choose another "
            "place with --run.dir DIR."
        ) from error
    return RunFolder(path, attempt, world)


def redact(text: str) -> str:
    """Return `text` without secrets: words after --api-key and the like, and the environment's."""
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET.search(name) and len(value) >= _MIN_SECRET and not value.isdigit()
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _SECRET_OPTION.sub(rf"\g<1>{HIDDEN}", text)


class _Redacting(logging.Formatter):
    """Formats a record, traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact(super().format(record))


def _claim(path: Path, config: Config, *, resume: bool, clean: bool, command: Sequence[str]) -> int:
    if resume and clean:
        raise ConfigError("--resume continues a run and --clean moves it away: give one of them.")
    if path.exists():
        _refuse_if_running(path)
        if clean:
            path.rename(_free_name(path))
        elif resume:
            _refuse_other_settings(path, config)
        else:
            refuse_work(path)
    elif resume:
        _log.warning("there is no %s to resume: it starts at 0", path)
    path.mkdir(parents=True, exist_ok=True)
    _lock(path)
    try:
        return _describe(path, config, command)
    except OSError:
        (path / "run.lock").unlink(missing_ok=True)
        raise


def _refuse_other_settings(path: Path, config: Config) -> None:
    """Raise before anything is written if what is there was made with other settings."""
    file = path / "config.yaml"
    if file.is_file() and published(path / "checkpoints"):
        check_settings(read([file]), config, path)
    elif file.is_file() and (path / "base").exists():
        check_settings(read([file]), config, path, OF_BASE)


def _describe(path: Path, config: Config, command: Sequence[str]) -> int:
    """Write what the run is; return the number of this attempt."""
    logs = path / "logs"
    attempt = 1 + max((int(one.name[8:]) for one in logs.glob("attempt_*")), default=0)
    folder = logs / f"attempt_{attempt}"
    folder.mkdir(parents=True)
    (path / "checkpoints").mkdir(mode=0o700, exist_ok=True)
    _replace(path / "config.yaml", redact(dump(config)))
    _append(path / "command.txt", f"attempt {attempt}: {redact(shlex.join(command))}\n")
    _append(path / "environment.txt", redact(_environment(attempt)))
    _point(logs / "latest", folder.name)
    return attempt


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.old-{number}")):
        number += 1
    return path.with_name(f"{path.name}.old-{number}")


def _refuse_if_running(path: Path) -> None:
    """Raise if another process holds the lock; a stale lock is named and removed."""
    lock = path / "run.lock"
    try:
        owner: Mapping[str, Any] = json.loads(lock.read_text("utf-8"))
        host, pid = owner["host"], int(owner["pid"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        host, pid = "an unknown host", 0
    # Our own number was another's: in a container every start is process 1.
    if host == socket.gethostname() and (pid == os.getpid() or not is_alive(pid)):
        _log.warning("%s is stale: process %d is gone; taken over", lock, pid)
        lock.unlink()
        return
    raise CheckpointError(
        f"{path} is in use by process {pid} on {host}. Wait for it or stop it; if it is gone, "
        f"remove {lock}."
    )


def _lock(path: Path) -> None:
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    try:
        descriptor = os.open(path / "run.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError as error:
        raise CheckpointError(f"{path} was taken by another run just now.") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(owner)


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
        said = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip() or "unknown"


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


def _append(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _replace(file: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)
