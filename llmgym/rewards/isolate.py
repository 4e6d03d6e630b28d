"""`Isolated`: a reward in processes that can be killed, so that no grader stops a training run.

Each worker is a new process (never a fork of the trainer), in its own session, with an environment
of a few names. It grades on its main thread, so graders that use signals work. A grader that is
late, exits, aborts or crashes costs its own sample, which becomes an error, and its worker, whose
process group is killed and replaced. A function that takes batches gets a batch in one call; where
that call is late or ends its process, every sample is scored in a call of its own. This stops
accidents, not attackers.
"""

import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Self, final

from llmgym import errors
from llmgym.errors import RewardError
from llmgym.messages import Completion, Sample, Score, Task
from llmgym.rewards.algebra import MathVerify, is_plain
from llmgym.rewards.answers import Comparing, spread
from llmgym.rewards.base import Reward, bounds_of, takes_batches
from llmgym.rewards.process import START_SECONDS, NotAVerdictError, Worker
from llmgym.rewards.rules import Comparison, reference
from llmgym.rewards.verdict import failed, row_of

MAX_CHECKED = 256
"""Gold answers that are looked at before a run: reading one as LaTeX takes up to 50 ms."""

LATE = "no verdict within"
"""How the error of a sample begins whose grader took too long, behind the reward's name."""


@final
@dataclass
class _Batch:
    """What is left of a batch: jobs of samples that nobody grades yet, and the scores so far."""

    waiting: deque[tuple[int, ...]] = field(default_factory=deque)
    scores: dict[int, Score] = field(default_factory=dict)


@final
class Isolated(Reward):
    """Scores with another reward in killable processes, one sample or one batch at a time."""

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
        self._batches = takes_batches(reward) if isinstance(reward, Reward) else None
        self._reward, self._workers, self._timeout = reward, workers, timeout
        self._lock = threading.Lock()
        self._pool: list[Worker] = []
        self._closer = weakref.finalize(self, _kill_all, self._pool)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...], dict[str, Any]]:
        """Pickle the settings; the copy starts its own processes."""
        learned = {"per_turn": self.per_turn, "_bounds": self._bounds, "_batches": self._batches}
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
            self._learn_traits()
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
        every = range(len(samples))
        with self._working():
            if self._batches is None:
                self._learn_traits()
            jobs = [tuple(every)] if self._batches and samples else [(i,) for i in every]
            batch = _Batch(waiting=deque(jobs))
            while len(batch.scores) < len(samples):
                self._fill(len(batch.waiting) + sum(worker.busy for worker in self._pool))
                self._assign(samples, batch)
                self._collect(batch)
            return [batch.scores[position] for position in every]

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Let the reward inside look at the gold answers, of a comparison those that are no words.

        Raises:
            RewardError: it cannot compare with one, or not in time; names the task.
        """
        if not isinstance(self._reward, Comparison):
            if isinstance(self._reward, Comparing):
                self._reward.check_tasks(tasks)
            return
        golds = {str(reference(task, self._reward.column)): task for task in tasks}
        odd = [
            task for task in golds.values() if not is_plain(reference(task, self._reward.column))
        ]
        chosen = [odd[i] for i in spread(len(odd), MAX_CHECKED)]
        samples = [Sample(task, (), Completion(""), "", terminated=True) for task in chosen]
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

    def _learn_traits(self) -> None:
        """Wait until a first process has loaded the reward, and so knows what it is."""
        self._fill(1)
        while not self._pool[0].ready:
            self._collect(_Batch())

    def _fill(self, unfinished: int) -> None:
        while len(self._pool) < min(self._workers, unfinished):
            self._pool.append(Worker.start(self._reward))

    def _assign(self, samples: Sequence[Sample], batch: _Batch) -> None:
        for worker in self._pool:
            if batch.waiting and not worker.busy:
                positions = batch.waiting.popleft()
                worker.grade([samples[i] for i in positions], positions, self._timeout)

    def _collect(self, batch: _Batch) -> None:
        busy = {worker.verdicts: worker for worker in self._pool if worker.busy}
        patience = min(worker.deadline for worker in busy.values()) - time.monotonic()
        spoken = wait(list(busy), max(0.0, patience))
        for pipe, worker in busy.items():
            if pipe in spoken:
                self._read(worker, batch)
            elif worker.deadline <= time.monotonic():
                seconds = self._timeout if worker.ready else START_SECONDS
                self._replace(worker, batch, f"{LATE} {seconds:g} s; it was killed")

    def _read(self, worker: Worker, batch: _Batch) -> None:
        was_ready = worker.ready
        try:
            verdict = worker.read()
        except NotAVerdictError as error:
            self._replace(worker, batch, str(error))
            return
        if verdict is None:
            return
        if "kind" in verdict:
            raise vars(errors).get(verdict["kind"], RewardError)(verdict["message"])
        if not was_ready:
            self._learn(**verdict)
            return
        for position, score in zip(worker.positions, verdict["scores"], strict=True):
            spans = tuple((start, end, value) for start, end, value in score.pop("spans", ()))
            batch.scores[position] = Score(**score, spans=spans)

    def _learn(
        self, *, per_turn: bool, collective: bool, batches: bool, bounds: tuple[float, float]
    ) -> None:
        if collective:
            raise RewardError(
                f"{self.name} is collective, so it cannot run isolated.\n--rewards.0.isolated false"
            )
        self.per_turn, self._batches, self._bounds = per_turn, batches, (*bounds,)

    def _replace(self, worker: Worker, batch: _Batch, why: str) -> None:
        self._pool.remove(worker)
        worker.kill()
        if not worker.ready:
            raise RewardError(
                f"{self.name} did not start in its process: {why}. Its traceback is above.\n"
                "A function of the started script itself cannot be found there: put it into a "
                "file of its own, or set isolated to false."
            )
        if len(worker.positions) > 1:
            batch.waiting.extend((position,) for position in worker.positions)
            return
        for position in worker.positions:
            batch.scores[position] = failed(f"{self.name}: {why}")


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
