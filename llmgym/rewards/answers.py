"""Gold answers checked before a run: a reward that compares must be able to read them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from llmgym.data.tasks import TaskList, TaskSource, num_tasks
from llmgym.messages import Task
from llmgym.rewards.base import Reward
from llmgym.rewards.scale import Composed

MAX_ROWS = 20_000
"""Rows of a file that are checked, spread evenly; the others when they are scored."""
MAX_MADE = 100
"""Tasks that are made on demand for the check."""


@runtime_checkable
class Comparing(Protocol):
    """A reward that compares with a gold answer."""

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Raise `RewardError` for a task without an answer, or with one it cannot compare with."""
        ...


def check_answers(reward: Reward | None, tasks: TaskSource | Sequence[Task]) -> None:
    """Check the gold answers of tasks with a reward and all rewards that it is made of.

    Args:
        reward: rewards that compare with nothing take every task.
        tasks: of a long source a part is checked, the first task included.

    Raises:
        RewardError: an answer is missing or cannot be compared; names the task.
    """
    if isinstance(reward, Comparing):
        reward.check_tasks(_some(tasks))
    elif isinstance(reward, Composed):
        for inner in reward.inner().values():
            check_answers(inner, tasks)


def spread(count: int, most: int) -> range:
    """Return at most `most` of `count` positions, evenly spread, the first included."""
    return range(0, count, max(1, -(-count // most)))


def _some(tasks: TaskSource | Sequence[Task]) -> list[Task]:
    most = MAX_ROWS if isinstance(tasks, TaskList | list | tuple) else MAX_MADE
    size = num_tasks(tasks)
    return [tasks[i] for i in spread(most if size is None else size, most)]
