"""A grading process of `Isolated`, seen from the trainer: start, pipes, end.

Requests go out pickled, each with the number of its job. Verdicts come back as lines of JSON, each
with that number and the process id of the grader: whatever else arrives on that pipe, such as the
verdict of a process that a grader forked, is no verdict, and costs the sample that is graded.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self, final

from llmgym.processes.tree import descendants, end_all
from llmgym.rewards.base import Reward

ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "TZ")
"""All that a grader inherits: keys and tokens of the trainer stay outside."""

START_SECONDS = 60.0
"""A grader whose file takes longer to import is late as well."""

END_SECONDS = 2.0
"""How long a process may take to pass on what its grader printed, and to end."""

MAX_VERDICT = 2**20
"""Bytes of the longest verdict, per sample."""

COMMAND = "from llmgym.rewards.worker import main; main()"


class NotAVerdictError(Exception):
    """Something else than the verdict of the current job arrived on the pipe, or its end."""


@final
@dataclass(eq=False)
class Worker:
    """A grading process and its two pipes.

    Attributes:
        job: the number of what is graded; None while it starts or is idle.
        deadline: `time.monotonic()` at which it is late.
        grader: the id of the process that grades, once it has started.
        positions: of its samples in their batch.
    """

    process: subprocess.Popen[bytes]
    requests: Connection
    verdicts: int
    deadline: float
    grader: int | None = None
    job: int | None = None
    positions: tuple[int, ...] = ()
    count: int = 0
    received: bytes = b""

    @classmethod
    def start(cls, reward: Reward | Mapping[str, Any]) -> Self:
        """Start a process and send it what to load."""
        request_end, requests = os.pipe()
        verdicts, verdict_end = os.pipe()
        environment = {key: os.environ[key] for key in ENVIRONMENT if key in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # Numeric libraries start a thread per core at import; graders are small, and many.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, str(request_end), str(verdict_end)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a grader prints belongs beside the trainer's own warnings
            pass_fds=(request_end, verdict_end),
            env=environment,
            start_new_session=True,
        )
        os.close(request_end)
        os.close(verdict_end)
        deadline = time.monotonic() + START_SECONDS
        worker = cls(process, Connection(requests, readable=False), verdicts, deadline)
        worker.send(reward)
        return worker

    @property
    def ready(self) -> bool:
        """Whether the reward is loaded."""
        return self.grader is not None

    @property
    def busy(self) -> bool:
        """Whether a message is due: it starts, or grades."""
        return not self.ready or self.job is not None

    def send(self, what: object) -> None:
        """Send a reward or a job; a dead worker is found when its verdict is awaited."""
        try:
            self.requests.send(what)
        except BrokenPipeError:
            self.deadline = 0.0

    def grade(self, samples: Sequence[object], positions: tuple[int, ...], timeout: float) -> None:
        """Give it samples that are scored in one call."""
        self.count += 1
        self.job, self.positions = self.count, positions
        self.deadline = time.monotonic() + timeout
        self.send((self.job, samples))

    def read(self) -> dict[str, Any] | None:
        """Read what there is; return the message of the current job once it is complete.

        Raises:
            NotAVerdictError: the process has ended, or something else is on the pipe.
        """
        chunk = os.read(self.verdicts, 65536)
        if not chunk:
            raise NotAVerdictError("its process ended: an exit, an abort, a crash or a kill")
        self.received += chunk
        line, newline, rest = self.received.partition(b"\n")
        if not newline and len(line) <= MAX_VERDICT * max(1, len(self.positions)):
            return None
        message = _parsed(line)
        own = message is not None and message["pid"] == (self.grader or message["pid"])
        if message is None or rest or not own or message["job"] != self.job:
            raise NotAVerdictError(
                "something else came over the pipe of its verdicts, as from a process that it "
                "forked; it was ended"
            )
        self.received, self.job, self.grader = b"", None, message["pid"]
        return {name: value for name, value in message.items() if name not in ("pid", "job")}

    def kill(self) -> None:
        """End the process and all that it started; what it printed is passed on before."""
        self.requests.close()  # which its guard sees, and ends everything
        try:
            self.process.wait(END_SECONDS)
            started = []
        except subprocess.TimeoutExpired:
            started = descendants(self.process.pid)
        with suppress(ProcessLookupError):  # a guard that was killed leaves its grader
            os.killpg(self.process.pid, signal.SIGKILL)
        end_all(started)
        self.process.wait()
        os.close(self.verdicts)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:  # no JSON, or no text
        return None
    return message if isinstance(message, dict) and {"pid", "job"} <= message.keys() else None
