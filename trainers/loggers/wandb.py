"""Weights & Biases: the only place that imports it. Offline unless logged in; never a prompt.

What goes up: settings, metrics and at most 16 sampled rows at a time. Code, git state, console
output, command line and machine facts stay. A failure warns once, and the run goes on.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from trainers.batch import Evaluation
from trainers.config.secrets import without_secrets
from trainers.errors import ConfigError
from trainers.loggers.base import STEP_KEYS, FinalStatus, Logger, RunInfo, Stage, evaluation_values
from trainers.loggers.credentials import has_credentials
from trainers.loggers.formatting import parts_of

_log = logging.getLogger(__name__)

TABLE_COLUMNS = (
    "step", "env", "prompt", "completion", "reward", "parts", "kl", "length", "finish_reason",
    "advantage",
)  # fmt: skip
MAX_TABLE_ROWS = 16
MAX_CELL_CHARACTERS = 4000
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that a spreadsheet runs; the last four are wide forms of the first."""
NUMBER = re.compile(r"[-+]?[\d.,]+%?")
METRIC_SECTIONS = (
    "objective", "policy", "value", "loss", "rewards", "env", "completions", "advantages", "perf",
    "timing_s", "train",
)  # fmt: skip


def mode() -> str:
    """Return WANDB_MODE, or online where credentials are, else offline.

    Raises:
        ConfigError: WANDB_MODE asks for online, and there are no credentials.
    """
    chosen = os.environ.get("WANDB_MODE")
    if chosen == "online" and not has_credentials():
        raise ConfigError(
            "WANDB_MODE=online, but no credentials.\nwandb login, or WANDB_MODE=offline"
        )
    return chosen or ("online" if has_credentials() else "offline")


def offline_parts(run_dir: Path) -> list[Path]:
    """Return what W&B kept offline of a run, a folder for each start that logged, in order."""
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def _library() -> ModuleType | None:
    try:
        import wandb
    except ImportError:
        return None
    return wandb


class WandbLogger(Logger):
    """One W&B run, continued by its id and step when the run is resumed."""

    def __init__(self) -> None:
        self._wandb: ModuleType | None = None
        self._dir = Path()
        self._run: Any = None
        self._table: Any = None
        self._step = 0
        self._id: str | None = None
        self._warned: set[str] = set()

    def _warn(self, kind: str, text: str) -> None:
        """Warn of each kind of failure once."""
        if kind not in self._warned:
            _log.warning("W&B: %s The run continues; metrics.jsonl has everything.", text)
        self._warned.add(kind)

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Turn whatever the library raises into one warning."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it raises anything; no run ends for its log
            self._warn(what, f"{what}: {type(error).__name__}: {error}.")

    def start(self, run: RunInfo) -> None:
        """Begin a W&B run in the run folder, or continue that of the resumed checkpoint."""
        config = run.config
        chosen = mode()
        self._wandb = _library()
        if self._wandb is None:
            self._warn("package", "the package is not installed: pip install wandb.")
            return
        self._id, self._step = run.state.get("id"), run.state.get("step", 0)
        self._dir = run.folder / "wandb"
        options: dict[str, Any] = {"mode": chosen, "dir": run.folder, "name": config.run.name}
        options["project"] = os.environ.get("WANDB_PROJECT", config.log.wandb.project)
        options["group"] = os.environ.get("WANDB_RUN_GROUP", config.log.wandb.group)
        options["config"] = without_secrets(config)
        if self._id and self._step:
            options["resume_from"] = f"{self._id}?_step={self._step}"
        self._begin(options)

    def _begin(self, options: dict[str, Any]) -> None:
        assert self._wandb is not None
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,  # it holds the command line
            x_disable_stats=True,
            x_disable_machine_info=True,
            init_timeout=20.0,
            stop_on_fatal_error=False,
        )
        with self._surviving("it did not start"):
            run = self._wandb.init(settings=settings, **options)
            for step_key in STEP_KEYS.values():
                run.define_metric(step_key)
            for stage in ("sft", "reward_model"):
                run.define_metric(f"{stage}/*", step_metric=STEP_KEYS[stage])
            for section in METRIC_SECTIONS:
                run.define_metric(f"{section}/*", step_metric=STEP_KEYS["ppo"])
            run.define_metric("eval/*", step_metric=STEP_KEYS["ppo"], summary="max")
            self._table = self._wandb.Table(columns=list(TABLE_COLUMNS), log_mode="INCREMENTAL")
            self._run, self._id = run, run.id

    def _record(self, record: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        if not self._dir.is_dir():
            self._warn("folder", f"{self._dir} was removed, so nothing more is written there.")
            return
        with self._surviving("a record was lost"):
            self._run.log(dict(record), step=self._step + 1)
            self._step += 1

    def log(self, values: Mapping[str, float], step: int, section: Stage = "ppo") -> None:
        """Log the finite figures with the stage's own step key."""
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values):
            self._warn(
                "finite", f"left out what is not finite: {sorted(values.keys() - finite.keys())}."
            )
        self._record({**finite, STEP_KEYS[section]: step})

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Add at most 16 rows to the table `samples`, which grows by one small file a time."""
        if self._table is None or not rows:
            return
        with self._surviving("samples were lost"):
            for row in rows[:MAX_TABLE_ROWS]:
                whole = {"step": step, "parts": parts_of(row), **row}
                self._table.add_data(*(_cell(whole.get(column)) for column in TABLE_COLUMNS))
        self._record({"samples": self._table, STEP_KEYS["ppo"]: step})

    def evaluation(
        self, evaluations: Sequence[Evaluation], step: int, figures: Mapping[str, float]
    ) -> None:
        """Log held-out scores."""
        self.log({**evaluation_values(evaluations), **figures}, step)

    def note(self, title: str, text: str) -> None:
        """Leave it out: the settings are there."""

    def close(self, status: FinalStatus) -> None:
        """Finish the W&B run; a failed one is marked."""
        if self._run is None:
            return
        with self._surviving("it did not finish"):
            self._run.finish(exit_code=1 if status == "failed" else 0)
        self._run = None

    def state_dict(self) -> dict[str, Any]:
        """Return the run's id and the last step it has seen."""
        return {"id": self._id, "step": self._step}


def _cell(value: Any) -> str | float | None:  # noqa: ANN401
    """Return a value of one of the table's types: a figure, or text, cut, and no formula.

    A table leaves W&B as CSV, and a spreadsheet runs a cell that begins like a formula.
    """
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        return float(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    is_formula = text.startswith(FORMULA) and not NUMBER.fullmatch(text)
    return ("'" * is_formula + text)[:MAX_CELL_CHARACTERS]
