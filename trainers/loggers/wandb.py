"""Weights & Biases: the only place that imports it. Offline unless logged in; never a prompt.

What goes up: settings, metrics and at most 16 sampled rows at a time. Code, git state, console
output, command line and machine facts stay. A failure warns once, and the run goes on.
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trainers.batch import Evaluation
from trainers.config import SCHEMA, Config
from trainers.errors import ConfigError
from trainers.loggers.base import (
    STEP_KEYS,
    Evaluations,
    Logger,
    Stage,
    Status,
    evaluation_values,
)
from trainers.loggers.credentials import has_credentials
from trainers.loggers.lines import parts_of

_log = logging.getLogger(__name__)

COLUMNS = (
    "step", "env", "prompt", "completion", "reward", "parts", "kl", "length", "finish_reason",
    "advantage",
)  # fmt: skip
MOST_ROWS = 16
MOST_CHARACTERS = 4000
SECTIONS = (
    "objective", "policy", "value", "loss", "rewards", "env", "completions", "advantages", "perf",
    "timing_s", "train",
)  # fmt: skip


def mode() -> str:
    """Return WANDB_MODE, or online where credentials are, else offline.

    Raises:
        ConfigError: WANDB_MODE asks for online, and there are no credentials.
    """
    wanted = os.environ.get("WANDB_MODE")
    if wanted == "online" and not has_credentials():
        raise ConfigError(
            "WANDB_MODE=online, but no credentials.\nwandb login, or WANDB_MODE=offline"
        )
    return wanted or ("online" if has_credentials() else "offline")


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
        self._run: Any = None
        self._table: Any = None
        self._step = 0
        self._id: str | None = None
        self._has_warned = False

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            _log.warning("W&B: %s The run goes on; metrics.jsonl has it all.", text)
        self._has_warned = True

    def start(
        self,
        config: Config,
        run_dir: Path,
        resume_state: Mapping[str, Any] | None = None,
        evaluations: Evaluations = (),
    ) -> None:
        """Begin a W&B run in `run_dir`, or continue the one of `resume_state`."""
        chosen = mode()
        self._wandb = _library()
        if self._wandb is None:
            self._warn("the package is not installed: pip install wandb.")
            return
        state = resume_state or {}
        self._id, self._step = state.get("id"), state.get("step", 0)
        options: dict[str, Any] = {"mode": chosen, "dir": run_dir, "name": config.run.name}
        options["project"] = os.environ.get("WANDB_PROJECT", config.log.wandb.project)
        options["group"] = os.environ.get("WANDB_RUN_GROUP", config.log.wandb.group)
        options["config"] = SCHEMA.dump_python(config, mode="json")
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
        try:
            self._run = self._wandb.init(settings=settings, **options)
            self._id = self._run.id
            for step_key in STEP_KEYS.values():
                self._run.define_metric(step_key)
            for stage in ("sft", "reward_model"):
                self._run.define_metric(f"{stage}/*", step_metric=STEP_KEYS[stage])
            for section in SECTIONS:
                self._run.define_metric(f"{section}/*", step_metric=STEP_KEYS["ppo"])
            self._run.define_metric("eval/*", step_metric=STEP_KEYS["ppo"], summary="max")
            self._table = self._wandb.Table(columns=list(COLUMNS), log_mode="INCREMENTAL")
        except (self._wandb.Error, OSError, TimeoutError) as error:
            self._run = None
            self._warn(f"it did not start: {error}.")

    def _record(self, record: Mapping[str, Any]) -> None:
        if self._run is None or self._wandb is None:
            return
        try:
            self._run.log(dict(record), step=self._step + 1)
            self._step += 1
        except (self._wandb.Error, OSError, ValueError) as error:
            self._warn(f"a record was lost: {error}.")

    def log(self, values: Mapping[str, float], step: int, section: Stage = "ppo") -> None:
        """Log the finite figures with the stage's own step key."""
        finite = {key: float(one) for key, one in values.items() if math.isfinite(one)}
        if len(finite) < len(values):
            self._warn(f"left out what is not finite: {sorted(values.keys() - finite.keys())}.")
        self._record({**finite, STEP_KEYS[section]: step})

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Add at most 16 rows to the table `samples`, which grows by one small file a time."""
        if self._table is None or not rows:
            return
        for row in rows[:MOST_ROWS]:
            whole = {"step": step, "parts": parts_of(row), **row}
            self._table.add_data(*(_cell(whole.get(column)) for column in COLUMNS))
        self._record({"samples": self._table, STEP_KEYS["ppo"]: step})

    def evaluation(
        self, evaluations: Sequence[Evaluation], step: int, figures: Mapping[str, float]
    ) -> None:
        """Log held-out scores."""
        self.log({**evaluation_values(evaluations), **figures}, step)

    def note(self, title: str, text: str) -> None:
        """Leave it out: the settings are there."""

    def close(self, status: Status) -> None:
        """Finish the W&B run; a failed one is marked."""
        if self._run is None or self._wandb is None:
            return
        try:
            self._run.finish(exit_code=1 if status == "failed" else 0)
        except (self._wandb.Error, OSError, TimeoutError) as error:
            self._warn(f"it did not finish: {error}.")
        self._run = None

    def state_dict(self) -> dict[str, Any]:
        """Return the run's id and the last step it has seen."""
        return {"id": self._id, "step": self._step}


def _cell(value: Any) -> str | float | None:  # noqa: ANN401
    """Return a value of one of the table's types: text, cut, or a figure."""
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        return float(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:MOST_CHARACTERS]
