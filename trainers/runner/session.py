"""One start of a run: its folder, loggers, checkpoints and signals. What it trains is not here."""

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, final, get_args

import torch

from llmgym.limits import CallLimit
from llmgym.plural import counted
from trainers.batch import Evaluation
from trainers.checkpoint.identity import (
    check_code,
    check_digests,
    check_identity,
    identity_of,
    same_everywhere,
)
from trainers.checkpoint.loading import Loaded, find, find_at, load
from trainers.checkpoint.saving import Saver, checkpoint_name
from trainers.checkpoint.state_files import random_state, restore_random_state, seed_random_state
from trainers.config import Config
from trainers.distributed.collectives import World, gather, global_max
from trainers.distributed.failures import watched
from trainers.distributed.launcher import is_lost
from trainers.loggers.base import Logger, RunInfo, Stage
from trainers.redaction.redact import redacted
from trainers.run_dir.folder import RunFolder, RunStatus
from trainers.runner.held_out import HeldOut

STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
STOP_SECONDS = 30.0
"""How long an environment may keep a run that was asked to stop."""
_log = logging.getLogger(__name__)


@final
class Session:
    """Logs, saves and stops on request; a context manager that leaves a status behind.

    Args:
        config: settings.
        world: this process among its peers.
        folder: the open run folder.
        loggers: told everything on rank 0; empty on the others.
        resume: False; True for the newest checkpoint; or the path of one.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        folder: RunFolder,
        *,
        loggers: Sequence[Logger],
        resume: bool | Path,
    ) -> None:
        self.config, self.world, self.folder = config, world, folder
        self.held_out = HeldOut(config.eval)
        self._loggers, self._resume = loggers, resume
        self._orphaned = ""
        self._saver = Saver(
            folder.checkpoints,
            identity_of(config, world),
            world=world,
            keep_last=config.checkpoint.keep_last,
        )
        self._is_asked = self._is_stopping = self._has_converged = False
        self._is_saved = True
        self._has_failed = False
        self._is_logging = False
        self._limits: list[CallLimit] = []
        self._notes: list[tuple[str, str]] = []
        self._saved_at = time.monotonic()
        self._save_seconds: float | None = None
        self._position: dict[str, Any] = {}
        self._logger_states: Mapping[str, Any] = {}
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Listen to signals."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {n: signal.signal(n, self._on_signal) for n in STOPPING}
            faulthandler.register(signal.SIGUSR2, self.folder.log_stream)
        self.folder.set_status("running")
        seed_random_state(self.config.run.seed, self.world.rank)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave status, logs, lock and signal handlers in order, whatever is raised or asked."""
        try:
            self._close_logs(kind, error)
        finally:
            if self._handlers:
                faulthandler.unregister(signal.SIGUSR2)
            self.folder.close()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            if self._handlers and error is not None and self.world.size > 1:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's: a word is to come

    def _close_logs(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        status: RunStatus = "interrupted" if self._is_stopping else "finished"
        reason = {}
        if self._has_converged:
            status, reason = "converged", {"reason": self.converged()}
        elif self._orphaned:
            reason = {"reason": self._orphaned}
        if error is not None:
            status = "interrupted" if kind is KeyboardInterrupt else "failed"
            reason = {"reason": f"{type(error).__name__}: {error}".splitlines()[0]}
            _log.error("the run failed", exc_info=error)
        self.folder.set_status(status, **self._position, **reason)
        for logger in self._loggers if self._is_logging else ():
            logger.close(status)

    def watched(self) -> AbstractContextManager[None]:
        """Return what the work is done under: ranks that are lost are named, and end the others."""
        seconds = self.config.backend.timeout_seconds
        return watched(self.folder.log_file.parent, self.world, seconds, fail=self._fail)

    def _fail(self, reason: str) -> None:
        """Leave status and lock in order, for a process that ends without coming back here."""
        self.folder.set_status("failed", **self._position, reason=reason)
        self.folder.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True
        for limit in self._limits:
            limit.hurry(STOP_SECONDS)

    def bound(self, limit: CallLimit) -> None:
        """Let environments with this limit end soon after a request to stop, or end the process."""
        limit.on_stuck = self._end_stuck
        self._limits.append(limit)

    def _end_stuck(self, message: str) -> None:
        """End this process from another thread: its main thread is inside of a C library."""
        text = f"EnvTimeoutError: the environment gave {message}, and cannot be interrupted"
        _log.error("%s. The checkpoints stand; continue with --resume.", text)
        faulthandler.dump_traceback(self.folder.log_stream)
        self._fail(text)
        sys.stderr.write(f"{text}.\n")
        sys.stderr.flush()
        os._exit(1)

    def should_stop(self) -> bool:
        """Tell whether any rank was asked to stop, or lost its launcher; the same on every rank."""
        is_alone = is_lost()
        asked = torch.tensor([int(self._is_asked or is_alone), int(is_alone)])
        stops, lost = global_max(asked.to(self.world.device)).tolist()
        self._is_stopping = bool(stops)  # one that comes while ranks are asked counts the next time
        if lost and not self._orphaned:
            of = gather(f"rank {self.world.rank} ({socket.gethostname()})" if is_alone else None)
            self._orphaned = f"the launcher of {next(rank for rank in of if rank)} is gone"
            _log.warning(
                "%s: the ranks save and stop. Continue with the same command and --resume.",
                self._orphaned,
            )
        return self._is_stopping

    def converge(self) -> None:
        """Note that the run ends because nothing gets better."""
        self._has_converged = True

    def converged(self) -> str:
        """Return why a run has converged."""
        best = f"{self.held_out.best:.4g} (iteration {self.held_out.best_step})"
        stale = counted(self.held_out.stale, "evaluation")
        return f"{stale} in a row did not improve; the best is {best}"

    def note(self, title: str, text: str) -> None:
        """Say what the run consists of, as soon as the logs are open."""
        if not self._is_logging:
            self._notes.append((title, text))
            return
        for logger in self._loggers:
            logger.note(title, redacted(text))

    def start_loggers(self) -> None:
        """Open the logs where the resumed checkpoint left them; a second call does nothing."""
        if self._is_logging:
            return
        self._is_logging = True
        for logger in self._loggers:
            state = self._logger_states.get(type(logger).__name__, {})
            logger.start(RunInfo(self.config, self.folder.path, state, self.held_out.evaluations))
        for title, text in self._notes:
            self.note(title, text)

    def log(self, values: Mapping[str, float], step: int, section: Stage, total: int) -> None:
        """Log the figures of a step, and where the run is."""
        self._position = {"stage": section, "iteration": step, "num_iterations": total}
        self._is_saved = False
        named = redacted(values)
        if self._save_seconds is not None and section == "ppo":
            named["timing_s/save"] = self._save_seconds
            self._save_seconds = None
        for logger in self._loggers:
            logger.log(named, step, section)
        if step % self.config.log.every == 0 and section == "ppo":
            self.folder.show_progress(**self._position)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a few responses, at the iterations that `log.samples_every` names."""
        every = self.config.log.samples_every
        if every and (step % every == 0 or step == 1):
            shown = redacted(rows[: self.config.log.sample_rows])
            for logger in self._loggers:
                logger.samples(shown, step)

    def evaluated(self, evaluations: Sequence[Evaluation], step: int) -> None:
        """Take and log held-out scores, their texts without secrets."""
        evaluations = [replace(entry, rows=tuple(redacted(entry.rows))) for entry in evaluations]
        self.held_out.take(evaluations, step)
        for logger in self._loggers:
            logger.evaluation(evaluations, step, self.held_out.figures())

    def identify(self, **digests: str) -> None:
        """Record digests of data and code: a resumed run and every rank must have the same.

        Args:
            digests: by what they are of.

        Raises:
            BackendError: on every rank, if ranks differ.
        """
        same_everywhere(**digests)
        self._saver.identity["digests"] |= digests

    def identify_code(self, code: Mapping[str, str]) -> None:
        """Note the source code behind the settings: a resume warns where it has changed.

        Args:
            code: its digests, by its name.

        Raises:
            BackendError: on every rank, if ranks differ.
        """
        same_everywhere(**code)
        self._saver.identity["code"] = dict(code)

    def save_is_due(self, step: int) -> bool:
        """Tell whether a checkpoint is due by count, by the clock or since the last one failed."""
        every = self.config.checkpoint.every
        return self.save_is_overdue() or bool(every and step % every == 0)

    def save_is_overdue(self) -> bool:
        """Tell whether a save failed, or `checkpoint.every_minutes` are over on any rank."""
        limit = self.config.checkpoint.every_minutes
        late = limit is not None and time.monotonic() - self._saved_at >= limit * 60
        late = late or self._has_failed
        return bool(global_max(torch.tensor(int(late), device=self.world.device)))

    def save(
        self, stage: Stage, step: int, *, parts: Mapping[str, Any], own: Mapping[str, Any],
        must: bool,
    ) -> None:  # fmt: skip
        """Save a checkpoint of this stage.

        Args:
            stage: it is named after.
            step: done so far.
            parts: what this rank holds of what is sharded over all ranks.
            own: this rank's states.
            must: raise where saving fails; else it is tried again after the next step.
        """
        if self._is_saved:
            return
        began = time.monotonic()
        path = self._saver.save(
            checkpoint_name(stage, step),
            parts=parts,
            own={"random": random_state(), **own, "session": self._state_dict()},
            keep=self.held_out.best_step if stage == "ppo" else None,
            must=must,
        )
        self._is_saved = path is not None
        self._has_failed = path is None
        ended = time.monotonic()
        self._save_seconds = ended - began
        if self._is_saved:
            self._saved_at = ended

    @property
    def is_saved(self) -> bool:
        """True where nothing was learned since the newest checkpoint; the same on every rank."""
        return self._is_saved

    def _state_dict(self) -> dict[str, Any]:
        return {
            "held_out": self.held_out.state_dict(),
            "loggers": {type(logger).__name__: logger.state_dict() for logger in self._loggers},
        }

    def resumes_at(self, stage: Stage) -> bool:
        """Tell whether a checkpoint of this stage was named to continue from."""
        return isinstance(self._resume, Path) and self._resume.name.startswith(f"{stage}_")

    def resumed(self, stage: Stage) -> tuple[int, Loaded] | None:
        """Return (steps done, states) of the checkpoint to continue from, if it is of this stage.

        Raises:
            CheckpointError: there are some, but none is whole.
            ConfigError: it is of a run with other settings.
        """
        if self._resume is False:
            return None
        if isinstance(self._resume, Path):
            is_other = any(self.resumes_at(other) for other in get_args(Stage) if other != stage)
            checkpoint = None if is_other else find_at(self._resume)
        else:
            checkpoint = find(self.folder.checkpoints, stage)
        if checkpoint is None:
            return None
        loaded = load(checkpoint.path, self.world.rank)
        check_identity(loaded.identity, self.config, self.folder.path)
        check_digests(loaded.identity, self._saver.identity["digests"], self.folder.path)
        check_code(loaded.identity, self._saver.identity["code"], self.folder.path)
        _log.info("continues from %s", checkpoint.path)
        return checkpoint.number, loaded

    def restore(self, loaded: Loaded) -> None:
        """Take up random states, held-out scores and logs where a checkpoint left them."""
        self._restore_logs(loaded)
        saved_by = loaded.identity["world_size"]
        if saved_by == self.world.size:
            restore_random_state(loaded.own["random"])
        else:  # each rank keeps the generators it was seeded with: those saved belong to others
            _log.warning("saved by %d ranks, resumed by %d: what libraries draw from the global "
                         "generators differs", saved_by, self.world.size)  # fmt: skip

    def restore_logs_of(self, stage: Stage) -> None:
        """Take up held-out scores and logs of a later stage, before an earlier one is repeated."""
        if resumed := self.resumed(stage):
            self._restore_logs(resumed[1])

    def _restore_logs(self, loaded: Loaded) -> None:
        state = loaded.own["session"]
        self.held_out.load_state_dict(state["held_out"])
        self._logger_states = state["loggers"]
