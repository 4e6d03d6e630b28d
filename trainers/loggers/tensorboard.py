"""Events for TensorBoard in tensorboard/ of the run folder, a folder for each stage."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from trainers.errors import ConfigError
from trainers.loggers.base import FinalStatus, Logger, RunInfo, Stage

_log = logging.getLogger(__name__)


def import_writer() -> Any:  # noqa: ANN401 - the module
    """Import what writes events.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    try:
        from torch.utils import tensorboard
    except ImportError as error:
        raise ConfigError(
            f"log.tensorboard needs the package tensorboard ({error}).\n"
            'Install it with pip install "llmgym-rl[train,tensorboard]", or set '
            "--log.tensorboard false"
        ) from error
    return tensorboard


@final
class TensorBoardLogger(Logger):
    """Writes every metric as a scalar of its key; the x axis is the step of its stage.

    Where the disk takes no events, it warns once and writes no more: no run ends for its log.
    """

    def __init__(self) -> None:
        self._module = import_writer()
        self._folder = Path()
        self._writers: dict[Stage, Any] = {}
        self._has_failed = False

    def start(self, run: RunInfo) -> None:
        """Take the folder of the run."""
        self._folder = run.folder / "tensorboard"

    def log(self, values: Mapping[str, float], step: int, section: Stage = "ppo") -> None:
        """Write the figures; what is not finite is left out, as no axis holds it."""
        with self._guarded():
            self._write(values, step, section)

    def _write(self, values: Mapping[str, float], step: int, section: Stage) -> None:
        if self._has_failed:
            return
        if section not in self._writers:
            # A resumed run takes back what an earlier attempt wrote from its first step on.
            writer = self._module.SummaryWriter(str(self._folder / section), purge_step=step)
            self._writers[section] = writer
        for name, value in values.items():
            if math.isfinite(value):
                self._writers[section].add_scalar(name, value, step)
        self._writers[section].flush()

    def close(self, status: FinalStatus) -> None:
        """Close the files."""
        with self._guarded():
            for writer in self._writers.values():
                writer.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn an error of the disk into one warning."""
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                _log.warning("%s gets no more events: %s", self._folder, error)
            self._has_failed = True


def make_logger() -> Logger:
    """Return the logger of `log.tensorboard`."""
    return TensorBoardLogger()
