"""A measured model in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, final

from trainers.bench.writing import WritingTimes
from trainers.errors import ConfigError, MeasurementError

WORKER_MODULE = "trainers.bench.worker"
TAIL = 6
"""Last lines of a worker that ended, in the message."""


@final
class ModelProcess:
    """Starts a worker, which loads its model at once.

    Args:
        name: of the model, as it is shown.
        spec: what `worker.loaded` takes.

    Attributes:
        facts: what the worker said when its model was loaded.
        peak_bytes: its largest resident memory so far.
    """

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        self.name, self.peak_bytes = name, 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.facts = self._answer(spec)
        except BaseException:
            self.close()
            raise

    def write(self, texts: Sequence[str], new_tokens: int) -> WritingTimes:
        """Let the model answer texts together.

        Raises:
            MeasurementError: the process ended.
        """
        answer = self._answer({"texts": list(texts), "new_tokens": new_tokens})
        self.peak_bytes = answer.pop("peak_bytes")
        return WritingTimes(**answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise MeasurementError(f"the process of {self.name} ended.\n{self._tail()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer

    def _tail(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        lines = text.splitlines()[-TAIL:]
        return "\n".join([*lines, f"(exit code {code})"])
