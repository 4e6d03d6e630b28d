"""`Isolated`: a reward in processes that can be killed, so that no grader stops a training run.

Each worker is a new process (never a fork of the trainer), in its own session, with an environment
of a few names. It grades on its main thread, so graders that use signals work. A grader that is
late, exits, aborts or crashes costs its own sample, which becomes an error, and its worker, whose
process group is killed and replaced. This stops accidents, not attackers.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Self, final

from llmgym import errors
from llmgym.errors import RewardError
from llmgym.messages import Completion, Sample, Score, Task
from llmgym.rewards.algebra import MathVerify, is_plain
from llmgym.rewards.answers import spread
from llmgym.rewards.base import Reward, bounds_of
from llmgym.rewards.rules import Comparison, reference
from llmgym.rewards.verdict import failed, row_of

ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "TZ")
"""All that a grader inherits: keys and tokens of the trainer stay outside."""

MAX_CHECKED = 256
"""Gold answers that are looked at before a run: reading one as LaTeX takes up to 50 ms."""

START_SECONDS = 60.0
"""A grader whose file takes longer to import is late as well."""

LATE = "no verdict within"
"""How the error of a sample begins whose grader took too long, behind the reward's name."""

COMMAND = "from llmgym.rewards.worker import main; main()"


@final
@dataclass(eq=False)
class Worker:
    """A grading process and its two pipes.

    Attributes:
        job: the position of the sample that it is at; None while it starts or is idle.
        deadline: `time.monotonic()` at which it is late.
    """

    process: subprocess.Popen[bytes]
    requests: Connection
    verdicts: Connection
    deadline: float
    ready: bool = False
    job: int | None = None

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
        worker = cls(
            process,
            Connection(requests, readable=False),
            Connection(verdicts, writable=False),
            deadline,
        )
        worker.send(reward)
        return worker

    def send(self, what: object) -> None:
        """Send a reward or a sample; a dead worker is found when its verdict is awaited."""
        try:
            self.requests.send(what)
        except BrokenPipeError:
            self.deadline = 0.0

    def kill(self) -> None:
        """Kill the process group and close the pipes."""
        with suppress(ProcessLookupError):  # it may be gone already
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.requests.close()
        self.verdicts.close()


@final
class Isolated(Reward):
    """Scores with another reward in killable processes, one sample at a time in each."""

    def __init__(
        self,
        reward: Reward | str | Mapping[str, Any],
        workers: int = 2,
        timeout: float = 10.0,
    ) -> None:
        """Keep what to run; processes start at the first score and end with this one.

        Args:
            reward: what `resolve` understands, best as text or mapping; an object is pickled.
            workers: how many processes grade at once.
            timeout: seconds that one sample may take.

        Raises:
            RewardError: a setting out of its range, or an object that cannot travel.
        """
        if workers < 1 or timeout <= 0:
            raise RewardError(f"workers and timeout must be above 0, got {workers} and {timeout}")
        if isinstance(reward, str):
            reward = {"function" if ":" in reward else "name": reward}
        if not isinstance(reward, Reward):
            reward = {**reward, "isolated": False}
        else:
            self.per_turn = reward.per_turn
            if reward.collective:
                raise RewardError(f"{reward.name} is collective, so it cannot run isolated")
        self.name = _checked_name(reward)
        self._bounds = bounds_of(reward if isinstance(reward, Reward) else None)
        self._reward, self._workers, self._timeout = reward, workers, timeout
        self._lock = threading.Lock()
        self._pool: list[Worker] = []
        self._closer = weakref.finalize(self, _kill_all, self._pool)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...], dict[str, Any]]:
        """Pickle the settings; the copy starts its own processes."""
        learned = {"per_turn": self.per_turn, "_bounds": self._bounds}
        return type(self), (self._reward, self._workers, self._timeout), learned

    @property
    def bounds(self) -> tuple[float, float]:
        """Those of the reward inside; of one given by name, known once a process has started."""
        return self._bounds

    def start(self) -> Self:
        """Start one process now, so that a reward that does not load says so before a run begins.

        Raises:
            RewardNotFound: no such file, module or function.
            RewardError: the function cannot be a reward, or its process does not start.
        """
        with self._working():
            self._fill(1)
            while not self._pool[0].ready:
                self._collect([])
        return self

    def close(self) -> None:
        """End the processes; the next score starts new ones."""
        with self._lock:
            _kill_all(self._pool)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score each sample; one that is late, or whose process dies, has status "error".

        Raises:
            RewardError: the reward inside does not load, or is broken.
        """
        with self._working():
            scores: list[Score | None] = [None] * len(samples)
            waiting = deque(range(len(samples)))
            while None in scores:
                self._fill(scores.count(None))
                self._assign(samples, waiting)
                self._collect(scores)
            return [score for score in scores if score is not None]

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Let the reward inside look at the gold answers that are neither numbers nor words.

        Raises:
            RewardError: it cannot compare with one, or not in time; names the task.
        """
        if not isinstance(self._reward, Comparison):
            return
        golds = {str(reference(one, self._reward.column)): one for one in tasks}
        odd = [one for one in golds.values() if not is_plain(reference(one, self._reward.column))]
        chosen = [odd[i] for i in spread(len(odd), MAX_CHECKED)]
        samples = [Sample(one, (), Completion(""), "", terminated=True) for one in chosen]
        for task, score in zip(chosen, self.score(samples), strict=True):
            if score.status == "error":
                raise RewardError(f"the answer of {row_of(task)} cannot be compared: {score.error}")

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except BaseException:  # broken, or interrupted: no late verdict for the next call
                _kill_all(self._pool)
                raise

    def _fill(self, unfinished: int) -> None:
        while len(self._pool) < min(self._workers, unfinished):
            self._pool.append(Worker.start(self._reward))

    def _assign(self, samples: Sequence[Sample], waiting: deque[int]) -> None:
        for worker in self._pool:
            if worker.ready and worker.job is None and waiting:
                worker.job = waiting.popleft()
                worker.deadline = time.monotonic() + self._timeout
                worker.send(samples[worker.job])

    def _collect(self, scores: list[Score | None]) -> None:
        busy = {one.verdicts: one for one in self._pool if not one.ready or one.job is not None}
        patience = min(worker.deadline for worker in busy.values()) - time.monotonic()
        spoken = wait(list(busy), max(0.0, patience))
        for pipe, worker in busy.items():
            if pipe in spoken:
                self._read(worker, scores)
            elif worker.deadline <= time.monotonic():
                seconds = self._timeout if worker.ready else START_SECONDS
                self._replace(worker, scores, f"{LATE} {seconds:g} s; it was killed")

    def _read(self, worker: Worker, scores: list[Score | None]) -> None:
        try:
            answer = worker.verdicts.recv_bytes()
        except (EOFError, OSError):
            self._replace(worker, scores, "its process ended: an exit, an abort or a crash")
            return
        verdict = json.loads(answer)
        if "kind" in verdict:
            raise vars(errors).get(verdict["kind"], RewardError)(verdict["message"])
        if not worker.ready:
            self._learn(**verdict)
            worker.ready = True
            return
        assert worker.job is not None, verdict
        spans = tuple((start, end, value) for start, end, value in verdict.pop("spans", ()))
        scores[worker.job] = Score(**verdict, spans=spans)
        worker.job = None

    def _learn(self, *, per_turn: bool, collective: bool, bounds: tuple[float, float]) -> None:
        if collective:
            raise RewardError(
                f"{self.name} is collective, so it cannot run isolated.\n--rewards.0.isolated false"
            )
        self.per_turn, self._bounds = per_turn, (*bounds,)

    def _replace(self, worker: Worker, scores: list[Score | None], why: str) -> None:
        self._pool.remove(worker)
        worker.kill()
        if not worker.ready:
            raise RewardError(
                f"{self.name} did not start in its process: {why}. Its traceback is above.\n"
                "A function of the started script itself cannot be found there: put it into a "
                "file of its own, or set isolated to false."
            )
        assert worker.job is not None
        scores[worker.job] = failed(f"{self.name}: {why}")


def math_verify(column: str | None = None, workers: int = 2, timeout: float = 10.0) -> Isolated:
    """Return the reward "math.verify": the library math-verify, in processes of its own."""
    return Isolated(MathVerify(column=column), workers, timeout)


def _kill_all(pool: list[Worker]) -> None:
    while pool:
        pool.pop().kill()


def _checked_name(reward: Reward | Mapping[str, Any]) -> str:
    if not isinstance(reward, Reward):
        named = str(reward.get("name") or reward.get("function"))
        return named.rpartition(":")[2]
    try:
        pickle.dumps(reward)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RewardError(
            f"{reward.name} cannot be sent to another process: {error}.\n"
            "Put the function into a file and name it FILE.py:FN, or set isolated to false."
        ) from error
    return reward.name
