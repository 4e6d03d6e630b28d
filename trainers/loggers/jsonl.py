"""metrics.jsonl and samples.jsonl: one JSON object a line, appended only, always on."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.loggers.base import STEP_KEYS, FinalStatus, Logger, RunInfo, Stage
from trainers.redaction.text_files import append

_log = logging.getLogger(__name__)


def json_value(value: Any) -> Any:  # noqa: ANN401
    """Return a value that JSON can hold: a figure that is not finite becomes its name as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value


class JsonlLogger(Logger):
    """Writes metrics.jsonl and samples.jsonl, each line carrying the attempt it belongs to.

    An attempt is a start of the run, numbered as in logs/. For an iteration that two attempts have
    seen, the last counts.
    """

    def __init__(self) -> None:
        self._dir = Path()
        self._attempt = 1
        self._torn: set[str] = set()

    def start(self, run: RunInfo) -> None:
        """Continue the files of the run folder, or begin them."""
        self._dir = run.folder
        started = (run.folder / "logs").glob("attempt_*")
        self._attempt = max(
            (int(folder.name.removeprefix("attempt_")) for folder in started), default=1
        )
        for name in ("metrics.jsonl", "samples.jsonl"):
            self._close_torn_line(run.folder / name)

    def _close_torn_line(self, file: Path) -> None:
        if file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n"):
            append(file, "\n")

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(
            json.dumps(
                {"attempt": self._attempt, **json_value(row)}, ensure_ascii=False, default=str
            )
            + "\n"
            for row in rows
        )
        try:
            append(self._dir / name, "\n" * (name in self._torn) + text)
            self._torn.discard(name)
        except OSError as error:  # a full disk: the work goes on, and the next checkpoint judges
            self._torn.add(name)
            _log.warning("%s lacks a line: %s", self._dir / name, error.strerror)

    def log(self, values: Mapping[str, float], step: int, section: Stage = "ppo") -> None:
        """Append one line to metrics.jsonl."""
        self._append("metrics.jsonl", [{STEP_KEYS[section]: step, **values}])

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Append the rows to samples.jsonl."""
        self._append("samples.jsonl", [{"step": step, **row} for row in rows])

    def close(self, status: FinalStatus) -> None:
        """Leave the files as they are; every line was written when it came."""
