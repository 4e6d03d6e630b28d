"""Where tasks come from, and in which order they are handed out.

A task source is anything with `len()` and `[index]` that gives `Task`s: a list, a file's rows
(`from_file`), a hub data set (`from_hf`) or a generator of endless ones (`procedural`). Train and
test are two sources, never one source with a mode. `TaskSampler` owns the position.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np

from llmgym.data.files import Row, read_table
from llmgym.data.formats import formatted
from llmgym.data.rows import Columns, labels_beside, tasks_of
from llmgym.errors import MissingExtraError, TaskSourceError
from llmgym.messages import Task

PLAIN = Columns()
"""Prompts in the column `prompt`, and nothing else that is known."""


class TaskSource(Protocol):
    """Tasks by number. `len()` raises `TypeError` where there is no end: ask `num_tasks`."""

    def __len__(self) -> int:
        """Return how many tasks there are."""
        ...

    def __getitem__(self, index: int, /) -> Task:
        """Return task `index`, the same one at every call; `IndexError` past the end."""
        ...


@final
@dataclass(frozen=True, eq=False)
class TaskList:
    """Tasks that are all there; compared by identity, so that a list of them is a cheap key.

    Attributes:
        tasks: the tasks.
        read_as: the format of the rows that they were read from, and what shows it.
    """

    tasks: tuple[Task, ...]
    read_as: str = ""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        """Return task `index`."""
        return self.tasks[index]


def num_tasks(source: TaskSource | Sequence[Task]) -> int | None:
    """Return how many tasks a source has, or None where it has no end."""
    try:
        return len(source)
    except TypeError:
        return None


def from_list(
    rows: Iterable[Task | str | Mapping[str, Any]],
    columns: Columns = PLAIN,
    *,
    source: str = "list",
) -> TaskList:
    """Make tasks of prompts, of mappings by column name, or of ready tasks.

    Raises:
        TaskSourceError: no rows, or a row without its prompt; names the row (the first is 1).
    """
    listed = list(rows)
    ready = tuple(row for row in listed if isinstance(row, Task))
    if ready and len(ready) == len(listed):
        return TaskList(ready)
    table = [(i, _row(item, columns, i)) for i, item in enumerate(listed, start=1)]
    return _tasks(table, columns, source)


def _tasks(table: list[Row], columns: Columns, source: str) -> TaskList:
    """Return the tasks of rows in any format; their responses are answers and solutions."""
    if not table:
        return TaskList(tasks_of(table, columns, source))
    read = formatted(
        table,
        source,
        columns.format,
        prompt_column=columns.prompt,
        last_assistant=columns.last_assistant,
    )
    if read.format != "columns" and read.has("response"):
        answer = columns.answer or (None if read.has("answer") else "response")
        columns = replace(columns, answer=answer, solution=columns.solution or "response")
    return TaskList(tasks_of(read.rows, columns, source), read.told)


def _row(item: Task | str | Mapping[str, Any], columns: Columns, number: int) -> Mapping[str, Any]:
    if isinstance(item, Task):
        raise TaskSourceError(f"row {number} is a Task and others are not; give one kind of row")
    return {columns.prompt: item} if isinstance(item, str) else item


def from_file(
    path: str | Path,
    columns: Columns = PLAIN,
) -> TaskList:
    """Read tasks from a .jsonl, .parquet, .csv or .tsv file; read once a process until it changes.

    Raises:
        TaskSourceError: no such file, an empty or broken one, a missing column or prompt; names
            the line (JSONL, CSV, TSV) or row (Parquet).
    """
    path = Path(path)
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _file_tasks(path, columns, stamp)


@lru_cache(maxsize=64)
def _file_tasks(path: Path, columns: Columns, stamp: int) -> TaskList:
    del stamp  # part of the key only: a file that changed is read again
    if columns.label is not None and columns.labels is None:
        columns = replace(columns, labels=labels_beside(path))
    return _tasks(read_table(path, columns.names), columns, str(path))


def hub_rows(name: str, *, split: str = "train", config: str | None = None) -> list[Row]:
    """Read the numbered rows of a Hugging Face data set, by hub id or folder.

    Raises:
        MissingExtraError: the library `datasets` is not installed.
        TaskSourceError: there is no such data set, or it cannot be reached.
    """
    try:
        import datasets
    except ImportError as error:
        message = 'reading from the hub needs datasets: pip install "llmgym-rl[data]"'
        raise MissingExtraError(message) from error
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:
        message = f"{name} is no file, and reading it as a data set of the hub failed: {error}"
        raise TaskSourceError(message) from error
    return [(number, dict(row)) for number, row in enumerate(rows, start=1)]


def as_dataset(rows: Sequence[Mapping[str, Any]]) -> Any:  # noqa: ANN401 - of the library
    """Return rows as a `datasets.Dataset`, as other trainers read them.

    Raises:
        MissingExtraError: the library `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        message = 'a data set for other trainers needs datasets: pip install "llmgym-rl[data]"'
        raise MissingExtraError(message) from error
    return datasets.Dataset.from_list([dict(row) for row in rows])


def from_hf(
    name: str,
    columns: Columns = PLAIN,
    *,
    split: str = "train",
    config: str | None = None,
) -> TaskList:
    """Read tasks from a Hugging Face data set, by hub id or folder.

    Raises:
        MissingExtraError: as of `hub_rows`.
        TaskSourceError: as of `hub_rows`; or a column or prompt is missing.
    """
    rows = hub_rows(name, split=split, config=config)
    return _tasks(rows, columns, f"{name}:{split}")


@final
@dataclass(frozen=True, slots=True)
class Procedural:
    """Tasks made on demand: task i is `make(default_rng((seed, i)), level)`, always the same.

    Attributes:
        make: the generator of one task.
        seed: another seed is another source.
        level: the difficulty handed to `make`.
        size: how many tasks there are; None for no end.
    """

    make: Callable[[np.random.Generator, int], Task]
    seed: int = 0
    level: int = 0
    size: int | None = None

    def __len__(self) -> int:
        """Return the size; `TypeError` where there is no end."""
        if self.size is None:
            raise TypeError("this task source has no end, so it has no length: see num_tasks()")
        return self.size

    def __getitem__(self, index: int) -> Task:
        """Make task `index`."""
        if index < 0 or (self.size is not None and index >= self.size):
            raise IndexError(f"task {index} is not in [0, {self.size})")
        return self.make(np.random.default_rng((self.seed, index)), self.level)


def procedural(
    make: Callable[[np.random.Generator, int], Task],
    seed: int = 0,
    *,
    level: int = 0,
    size: int | None = None,
) -> Procedural:
    """Return the source whose task i is `make(default_rng((seed, i)), level)`."""
    return Procedural(make, seed, level, size)


def disjoint(
    train: TaskSource | Sequence[Task], validation: TaskSource | Sequence[Task], *, cap: int = 10000
) -> None:
    """Check that no held-out task is also trained on; tasks are compared by id.

    Args:
        train: what is trained on.
        validation: what is held out.
        cap: of a source without an end, this many tasks are compared.

    Raises:
        TaskSourceError: the sources overlap; says by how much.
    """
    seen = {task.id for task in _first(train, cap)}
    held_out = [task.id for task in _first(validation, cap)]
    common = [task_id for task_id in held_out if task_id in seen]
    if common:
        raise TaskSourceError(
            f"{len(common)} of {len(held_out)} held-out tasks are also in train (first: id "
            f"{common[0]}). Their score would mean nothing.\nRemove them from one of the files."
        )


@final
class TaskSampler:
    """Hands out task numbers, each once an epoch over all ranks, resumable at any number of ranks.

    There is one global position in one seeded order; a call of `next(n)` on every rank moves it
    by `n * world_size`, and rank r gets the r-th block of n. The order of an epoch is a function
    of (seed, epoch) alone. A source without an end is simply counted up.
    """

    def __init__(
        self, length: int | None, seed: int = 0, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """Start at the first task.

        Args:
            length: the number of tasks, `num_tasks(source)`; None for no end.
            seed: chooses the order.
            rank: of this process, in [0, world_size).
            world_size: how many processes share the tasks; every one calls `next` equally often.

        Raises:
            TaskSourceError: the source is empty, or the rank is not one.
        """
        if length is not None and length < 1:
            raise TaskSourceError("cannot sample from a source of 0 tasks; give it one row or more")
        if not 0 <= rank < world_size:
            raise TaskSourceError(f"rank must be in [0, {world_size}), got {rank}")
        self._length, self._seed = length, seed
        self._rank, self._world_size = rank, world_size
        self._position = 0

    def next(self, n: int) -> list[int]:
        """Return this rank's next `n` task numbers."""
        start = self._position + self._rank * n
        self._position += n * self._world_size
        return [self._at(position) for position in range(start, start + n)]

    def state_dict(self) -> dict[str, int | None]:
        """Return the global position, and what the order depends on."""
        return {"position": self._position, "length": self._length, "seed": self._seed}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Go on where `state` was taken, at this or another number of ranks.

        Raises:
            TaskSourceError: the state is of another source or seed.
        """
        mine = self.state_dict()
        for key in ("length", "seed"):
            if state[key] != mine[key]:
                raise TaskSourceError(
                    f"the checkpoint's task order has {key} {state[key]}, this run has {mine[key]}."
                    "\nResume with the same tasks and seed, or start a new run."
                )
        self._position = int(state["position"] or 0)

    def _at(self, position: int) -> int:
        if self._length is None:
            return position
        epoch, offset = divmod(position, self._length)
        return int(_order(self._length, self._seed, epoch)[offset])


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


def _first(source: TaskSource | Sequence[Task], cap: int) -> Iterable[Task]:
    size = num_tasks(source)
    return islice((source[i] for i in range(cap if size is None else size)), None)
