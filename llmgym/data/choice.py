"""Which task of a source an episode gets: at an index, or drawn at random."""

from dataclasses import replace

import numpy as np

from llmgym.data.tasks import Procedural, TaskSource, num_tasks
from llmgym.errors import TaskSourceError
from llmgym.messages import Task

ENDLESS = 2**31
"""Tasks of a source without end are drawn from this many."""


def task_at(source: TaskSource, index: int) -> Task:
    """Return the task at an index.

    Raises:
        TaskSourceError: the source has no such index.
    """
    size = num_tasks(source)
    if index < 0 or (size is not None and index >= size):
        raise TaskSourceError(f"A task index must lie in [0, {size}); received {index}")
    return source[index]


def draw_task(source: TaskSource, rng: np.random.Generator) -> Task:
    """Draw any task."""
    size = num_tasks(source)
    return source[int(rng.integers(ENDLESS if size is None else size))]


def draw_level(source: TaskSource, level: int, rng: np.random.Generator) -> Task:
    """Draw a task of one level.

    Raises:
        TaskSourceError: no task has this level, or the source has no end and cannot be searched.
    """
    if isinstance(source, Procedural):
        return draw_task(replace(source, level=level), rng)
    size = num_tasks(source)
    if size is None:
        raise TaskSourceError("A source without end is not searched for a level; pass index")
    indices = [i for i in range(size) if source[i].level == level]
    if not indices:
        have = sorted({source[i].level for i in range(size)})
        raise TaskSourceError(f"No task has level {level}; the levels are {have}")
    return source[indices[int(rng.integers(len(indices)))]]
