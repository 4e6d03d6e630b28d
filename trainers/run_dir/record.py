"""What a run folder says of its run: settings, state, figures. It only reads; no torch.

config.yaml  status.json  run.lock  metrics.jsonl
"""

import datetime
import json
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainers.config import Config
from trainers.config.files import read
from trainers.errors import ConfigError

Curves = Mapping[str, Mapping[int, float]]
"""Metric -> iteration of PPO, or step of its own stage -> value."""

INITIAL_FILES = {
    "config.yaml", "command.txt", "environment.txt", "status.json", "run.lock", "logs", "wandb",
    "checkpoints", "python.json",
}  # fmt: skip
"""What a start leaves before anything was learned or measured."""

DONE = ("finished", "converged")
"""States of a run that has made all of its model."""
STATES = ("running", "finished", "failed", "interrupted", "killed", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        path: the folder.
        config: its settings.
        state: one of `STATES`; killed is a run that says running while its process is gone.
        status: the contents of status.json; empty where it cannot be read.
        curves: the figures of metrics.jsonl.
        unreadable: lines of metrics.jsonl that are no records; a kill leaves one.
    """

    path: Path
    config: Config
    state: str
    status: Mapping[str, Any]
    curves: Curves
    unreadable: int

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def kind(self) -> str:
        """Return `control`, `ppo`, or the stage a run consists of where it has no PPO."""
        if self.config.is_control:
            return "control"
        return "ppo" if self.config.ppo.num_iterations else str(self.status.get("stage", "sft"))

    def last(self, metric: str) -> float | None:
        """Return the newest value of a metric, None where it was not logged."""
        curve = self.curves.get(metric)
        return curve[max(curve)] if curve else None


def held_out_interval(logged: Curves, step: int) -> tuple[float, float] | None:
    """Return the 95 % interval of the held-out score at a step; None of several environments."""
    lows, highs = (
        [curve for name, curve in logged.items() if name.startswith("eval/") and name.endswith(end)]
        for end in ("/ci_low", "/ci_high")
    )
    if len(lows) != 1 or len(highs) != 1 or step not in lows[0] or step not in highs[0]:
        return None
    return lows[0][step], highs[0][step]


def read_status(path: Path) -> dict[str, Any]:
    """Return the contents of a run's status.json, empty where there is none that can be read."""
    try:
        status = json.loads((path / "status.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def dated(config: Config, *, resume: bool) -> Config:
    """Return settings with the day that chat templates print, today's for a new run.

    A run that is continued keeps the day on which it started, over midnight as well; one that was
    started before days were kept has none.
    """
    if config.run.date is not None or config.is_control:
        return config
    file = Path(config.run.dir) / config.run.name / "config.yaml"
    is_known = resume and file.is_file()
    day = read([file]).run.date if is_known else datetime.date.today().isoformat()
    return replace(config, run=replace(config.run, date=day))


def refuse_work(path: Path) -> None:
    """Refuse to start anew where a run has learned something.

    Raises:
        ConfigError: it has; says how far it came, and what to do.
    """
    if path.exists() and _has_work(path):
        raise ConfigError(
            f"{path} exists ({describe_progress(path)}). --resume continues, --clean moves it "
            f"away, --run.name {path.name}-2 starts another."
        )


def _has_work(path: Path) -> bool:
    """Tell whether a folder holds more than a start that failed before its first step."""
    if not path.is_dir() or {entry.name for entry in path.iterdir()} - INITIAL_FILES:
        return True
    if "iteration" in read_status(path):
        return True
    checkpoints = path / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def describe_progress(path: Path) -> str:
    """Return how far a run came and how it ended, for a message."""
    status = read_status(path)
    if not status:
        return "no status"
    stage, done = status.get("stage"), status.get("iteration")
    where = f"{stage} {done}/{status.get('num_iterations', '?')}, " if stage else ""
    return f"{where}{status.get('status', 'no status')}"


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a line that a kill cut in two is left out."""
    return (row for row in _parsed(file) if row is not None)


def _parsed(file: Path) -> Iterator[dict[str, Any] | None]:
    """Yield each line's object, None for a line that is none."""
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in filter(str.strip, stream):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            yield row if isinstance(row, dict) else None


def _step_of(record: Mapping[str, Any]) -> float | None:
    """Return where on its stage's x axis a record belongs: iterations of PPO, steps of others."""
    own = (value for key, value in record.items() if re.fullmatch(r"[a-z_]+/step", key))
    step = record.get("train/global_step", next(own, None))
    return step if isinstance(step, int | float) else None


def curves(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return metric -> step -> value; of a step that two attempts have seen, the last counts."""
    by_metric: dict[str, dict[int, float]] = {}
    for record in records:
        step = _step_of(record)
        if step is None:
            continue
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value) and "/" in name:
                by_metric.setdefault(name, {})[int(step)] = value
    return by_metric


def check_run(path: Path) -> None:
    """Refuse what is no run folder.

    Raises:
        ConfigError: there is none, or it is no run folder; says which.
    """
    hint = "\nllmgym runs list"
    if not path.is_dir():
        raise ConfigError(f"there is no run folder {path}. What is there:{hint}")
    if not (path / "config.yaml").is_file():
        if (path.parent / "config.yaml").is_file():
            raise ConfigError(f"{path} is a part of a run. Name the run itself: {path.parent}")
        raise ConfigError(f"{path} is no run folder: it has no config.yaml. What is there:{hint}")


def read_run(path: Path) -> RunRecord:
    """Return what a run folder says.

    Raises:
        ConfigError: it is no run folder, or its files are damaged; says which.
    """
    check_run(path)
    try:
        parsed = list(_parsed(path / "metrics.jsonl"))
    except OSError as error:
        raise ConfigError(
            f"{path}/metrics.jsonl cannot be read: {error.strerror}. Nothing was changed. "
            "Mend it, or move it away: what else is there is shown without it."
        ) from error
    records = [row for row in parsed if row is not None]
    if parsed and not records:
        raise ConfigError(
            f"{path}/metrics.jsonl is damaged: none of its {len(parsed)} lines is a record. "
            "Nothing was changed. Restore it, or move it away: what else is there is shown "
            f"without it.\nmv {path}/metrics.jsonl {path}/metrics.damaged"
        )
    status = read_status(path)
    return RunRecord(
        path=path,
        config=read([path / "config.yaml"]),
        state=_state(path, status),
        status=status,
        curves=curves(records),
        unreadable=len(parsed) - len(records),
    )


def _state(path: Path, status: Mapping[str, Any]) -> str:
    status_word = str(status.get("status", "unknown"))
    if status_word != "running":
        return status_word if status_word in STATES else "unknown"
    try:
        owner = json.loads((path / "run.lock").read_text("utf-8"))
        host, pid = owner["host"], int(owner["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "killed"  # who runs holds a lock
    return "killed" if host == socket.gethostname() and not is_alive(pid) else "running"


def run_summary(record: RunRecord) -> dict[str, Any]:
    """Return one line of a table of runs; a figure that was not logged is None."""
    scores = record.curves.get("eval/score", {})
    ends = held_out_interval(record.curves, max(scores)) if scores else None
    trains_policy = record.kind in ("ppo", "control")
    return {
        "name": record.name,
        "path": str(record.path),
        "state": record.state,
        "kind": record.kind,
        "env": ", ".join(env.id for env in record.config.envs) if trains_policy else None,
        "iteration": record.status.get("iteration"),
        "num_iterations": record.status.get("num_iterations"),
        "reward": record.last("objective/scores"),
        "score": record.last("eval/score"),
        "ci_low": ends[0] if ends else None,
        "ci_high": ends[1] if ends else None,
        "bytes": folder_size(record.path),
        "updated": record.status.get("updated"),
    }


def folder_size(path: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed."""
    return sum(
        (Path(folder) / file).lstat().st_size
        for folder, _, files in os.walk(path)
        for file in files
        if (Path(folder) / file).is_file()
    )
