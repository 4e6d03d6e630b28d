"""The far end of `Isolated`: one process that scores one job after another on its main thread.

Run by `process.py` as a new session; not a command for people. The process splits in two: the
child grades; the parent waits for the trainer or the child to go away, and then ends all that the
child started: a grader that never returns does not outlive its trainer, and nobody holds the pipe
of a dead one open, which the trainer would fill and wait on. Verdicts go over a pipe of their own,
as lines of JSON; what a grader prints is passed on by the parent, escaped and up to a limit.
"""

import ctypes
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, final

from llmgym.errors import LLMGymError
from llmgym.messages import Sample, Score
from llmgym.processes.escaping import Lines
from llmgym.processes.tree import descendants, end_all
from llmgym.rewards.base import Reward, bounds_of, resolve, score_samples, takes_batches

MAX_OUTPUT = 20_000
"""Characters of a grader's output that are passed on; the rest is left out, and said to be."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: processes below that lose their parent become children of this one."""


def main() -> None:
    """Score what arrives on the pipe argv[1], answer on the pipe argv[2]."""
    requests, verdicts = int(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.WARNING)  # the trainer reports failures, once a batch
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    output, printed = os.pipe()
    guard = Guard(output)
    signal.signal(signal.SIGCHLD, guard.child_ended)
    grader = os.fork()
    if grader == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(output)
        _print_to(printed)
        _grade(Connection(requests, writable=False), Connection(verdicts, readable=False))
        sys.stdout.flush()
        os._exit(0)
    guard.grader = grader
    os.close(printed)
    os.close(verdicts)  # so that the trainer sees the end of the grader, not of this process
    guard.wait(requests)


@final
class Guard:
    """Passes on what a grader prints, and ends all processes below when it is time."""

    def __init__(self, output: int) -> None:
        self.grader: int | None = None
        self._output, self._lines = output, Lines(MAX_OUTPUT, "the reward")
        os.set_blocking(output, False)

    def wait(self, requests: int) -> None:
        """Pass on output until the trainer goes away; the end of the grader is a signal."""
        poll = select.poll()
        poll.register(requests, 0)  # asks for nothing, hence wakes only when the other end closes
        poll.register(self._output, select.POLLIN)
        while all(descriptor != requests for descriptor, _ in poll.poll()):
            if not self._pass_on():
                poll.unregister(self._output)
        self.end()

    def child_ended(self, *_: object) -> None:
        """End all if it was the grader; others are processes that it left behind."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if self.grader in (None, ended):
                    self.end()

    def end(self) -> None:
        """Pass on the last output, then kill every process below and this one."""
        while self._pass_on():
            pass
        for line in self._lines.rest():
            _write(f"{line}\n")
        end_all(descendants(os.getpid()))
        os.killpg(0, signal.SIGKILL)

    def _pass_on(self) -> bool:
        """Pass on what is there; False where nothing is."""
        try:
            chunk = os.read(self._output, 65536)
        except BlockingIOError:
            return False
        self._show(chunk.decode("utf-8", "backslashreplace"))
        return bool(chunk)

    def _show(self, text: str) -> None:
        for line in self._lines.of(text):
            _write(f"{line}\n")


def _write(text: str) -> None:
    with suppress(OSError):  # nobody reads the trainer's messages any more
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _print_to(descriptor: int) -> None:
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _grade(requests: Connection, verdicts: Connection) -> None:
    grader = os.getpid()

    def answer(job: int | None, message: dict[str, Any]) -> None:
        if os.getpid() != grader:  # a process that a reward forked came back out of the reward
            os._exit(0)
        line = json.dumps({"pid": grader, "job": job, **message}) + "\n"
        with os.fdopen(verdicts.fileno(), "wb", closefd=False) as pipe:
            pipe.write(line.encode())

    reward = _loaded(requests, answer)
    for pipe in (
        requests,
        verdicts,
    ):  # a process that the reward forks takes no job, and answers none
        os.register_at_fork(
            after_in_child=pipe.close
        )  # closing again, in its own forks, is nothing
    while reward is not None:
        try:
            job, samples = requests.recv()
        except EOFError:
            return
        answer(job, _verdicts(reward, samples))


def _loaded(requests: Connection, answer: Any) -> Reward | None:  # noqa: ANN401 - see _grade
    try:
        reward = resolve(requests.recv())
    except LLMGymError as error:
        answer(None, {"kind": type(error).__name__, "message": str(error)})
        return None
    traits = {"per_turn": reward.per_turn, "collective": reward.collective}
    traits["batches"] = takes_batches(reward)
    answer(None, {**traits, "bounds": bounds_of(reward)})
    return reward


def _verdicts(reward: Reward, samples: Sequence[Sample]) -> dict[str, Any]:
    try:
        scores = score_samples(reward, samples, retries=0)
    except LLMGymError as error:
        return {"kind": type(error).__name__, "message": str(error)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm left pending would end the next sample
    return {"scores": [_as_dict(score) for score in scores]}


def _as_dict(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "parts": dict(score.parts),
        "status": score.status,
        "spans": score.spans,
        "error": score.error,
        "retries": score.retries,
    }
