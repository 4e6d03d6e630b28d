"""A curriculum: the level of the tasks follows how well the policy does.

`LevelSource` numbers the tasks of several levels in one line, and `LevelSampler` deals out those of
the current one. What was earned decides, over a window of episodes, whether the level rises or
falls. All of it is in the sampler's state, so that a resumed run continues at the same task of the
same level.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import gymnasium

from llmgym.data.tasks import Procedural, TaskSampler, TaskSource, num_tasks
from llmgym.env import core_env
from llmgym.errors import TaskSourceError
from llmgym.messages import Task


@final
@dataclass(frozen=True, slots=True)
class Levels:
    """When the level changes.

    Attributes:
        levels: of the tasks, the easiest first.
        up: a mean of at least this, as a share of the most an episode can earn, leads to the next.
        down: a mean of at most this leads back to the one before.
        window: episodes of a level that are judged together.
    """

    levels: tuple[int, ...]
    up: float = 0.8
    down: float = 0.2
    window: int = 256

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if len(set(self.levels)) != len(self.levels) or len(self.levels) < 2:
            raise TaskSourceError(
                f"a curriculum has two different levels or more, got {list(self.levels)}"
            )
        if not 0 <= self.down < self.up <= 1 or self.window < 1:
            raise TaskSourceError(
                "a curriculum needs 0 <= down < up <= 1 and a window of 1 or more, got down "
                f"{self.down}, up {self.up}, window {self.window}"
            )


@final
class LevelSource:
    """The tasks of several levels as one source: task k is number k // L of level k % L.

    Args:
        source: procedural, or a list with tasks of every level.
        levels: L of them.

    Raises:
        TaskSourceError: a level has no task, or the source has no end and cannot be searched.
    """

    def __init__(self, source: TaskSource, levels: Sequence[int]) -> None:
        self._levels = tuple(levels)
        if isinstance(source, Procedural):
            made = [replace(source, level=level) for level in levels]
            self._parts: list[TaskSource] = [*made]
            self._parts[0][0]  # a level out of range is refused now
            self._parts[-1][0]
            return
        size = num_tasks(source)
        if size is None:
            raise TaskSourceError(
                "a source without end is not searched for the levels of its tasks"
            )
        tasks = [source[i] for i in range(size)]
        self._parts = [[task for task in tasks if task.level == level] for level in levels]
        absent = [level for level, part in zip(levels, self._parts, strict=True) if not len(part)]
        if absent:
            have = sorted({task.level for task in tasks})
            raise TaskSourceError(f"no task has level {absent[0]}; the levels are {have}")

    def sizes(self) -> list[int | None]:
        """Return how many tasks each level has; None for no end."""
        return [num_tasks(part) for part in self._parts]

    def __len__(self) -> int:
        """Return L times the size of the largest level; `TypeError` where there is no end."""
        sizes = [size for size in self.sizes() if size is not None]
        if len(sizes) < len(self._parts):
            raise TypeError("this task source has no end, so it has no length: see num_tasks()")
        return max(sizes) * len(self._parts)

    def __getitem__(self, index: int) -> Task:
        """Return task `index`; a level with fewer tasks than the largest begins again."""
        number, place = divmod(index, len(self._parts))
        size = self.sizes()[place]
        return self._parts[place][number if size is None else number % size]


def with_levels(
    make: Callable[[], gymnasium.Env], levels: Sequence[int]
) -> Callable[[], gymnasium.Env]:
    """Return a maker of the same environment with a `LevelSource` of its tasks."""
    return partial(_made, make, tuple(levels))


def _made(make: Callable[[], gymnasium.Env], levels: tuple[int, ...]) -> gymnasium.Env:
    env = make()
    core = core_env(env)
    core.tasks = LevelSource(core.tasks, levels)
    return env


@final
class LevelSampler:
    """Deals out task numbers of a `LevelSource`: those of the current level, each once per epoch.

    Args:
        rule: the levels, and when they change.
        sizes: tasks of each level; None for no end.
        seed: chooses the order of each level.

    Attributes:
        place: of the current level among those of the rule.
    """

    def __init__(self, rule: Levels, sizes: Sequence[int | None], seed: int = 0) -> None:
        self._rule = rule
        self._samplers = [TaskSampler(size, seed) for size in sizes]
        self.place = 0
        self._earned, self._count = 0.0, 0

    @property
    def level(self) -> int:
        """The current level."""
        return self._rule.levels[self.place]

    def next(self, n: int) -> list[int]:
        """Return the next `n` task numbers of the current level."""
        count = len(self._samplers)
        return [self.place + count * number for number in self._samplers[self.place].next(n)]

    def learn(self, earned: float, count: int) -> None:
        """Take what episodes of the current level earned, and change the level at a window's end.

        Args:
            earned: sum over episodes, each as a share of the most it can earn.
            count: of the episodes.
        """
        self._earned, self._count = self._earned + earned, self._count + count
        if self._count < self._rule.window:
            return
        mean = self._earned / self._count
        self._earned, self._count = 0.0, 0
        if mean >= self._rule.up:
            self.place = min(self.place + 1, len(self._samplers) - 1)
        elif mean <= self._rule.down:
            self.place = max(self.place - 1, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the level, the window so far, and the position in each level's tasks."""
        return {
            "levels": list(self._rule.levels),
            "place": self.place,
            "earned": self._earned,
            "count": self._count,
            "samplers": [sampler.state_dict() for sampler in self._samplers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            TaskSourceError: the state is of other levels, tasks or another seed.
        """
        levels = state.get("levels")
        if levels != list(self._rule.levels):
            raise TaskSourceError(
                f"the checkpoint's curriculum has levels {levels}, this run's "
                f"{list(self._rule.levels)}.\nResume with the same levels, or start a new run."
            )
        self.place = int(state["place"])
        self._earned, self._count = float(state["earned"]), int(state["count"])
        for sampler, saved in zip(self._samplers, state["samplers"], strict=True):
            sampler.load_state_dict(saved)
