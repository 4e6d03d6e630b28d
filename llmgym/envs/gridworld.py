"""`llmgym/TextGridWorld-v0`: walk to a goal that is described in words.

Each turn says where the walker is, where the goal is and which ways are blocked; a response is
`north`, `east`, `south` or `west`. Reaching the goal on a shortest path earns 1.0, each further
turn takes 0.1, and a goal that is not reached earns 0.0. Walls are drawn, and the hash of a world
decides the split it belongs to.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.env import LLMEnv
from llmgym.envs.games import Progress
from llmgym.messages import Completion, Reply, Sample, Task
from llmgym.rewards.base import UnitReward

LEVELS = range(2, 8)
WALL_SHARE = 0.25
EXTRA_COSTS = 0.1
MAX_EXTRA = 9
STEPS = {"north": (-1, 0), "east": (0, 1), "south": (1, 0), "west": (0, -1)}
MAX_TURNS = 36
Place = tuple[int, int]


def distances(walls: frozenset[Place], goal: Place, size: int) -> dict[Place, int]:
    """Return the steps from each place to the goal; a place without a path is not there."""
    waiting, steps = deque([goal]), {goal: 0}
    while waiting:
        place = waiting.popleft()
        for way in STEPS:
            after = moved(place, way)
            if after not in steps and is_free(after, walls, size):
                steps[after] = steps[place] + 1
                waiting.append(after)
    return steps


def moved(place: Place, way: str) -> Place:
    """Return the place after a step."""
    return place[0] + STEPS[way][0], place[1] + STEPS[way][1]


def is_free(place: Place, walls: frozenset[Place], size: int) -> bool:
    """Return whether a place is inside of the world and no wall."""
    return min(place) >= 0 and max(place) < size and place not in walls


@final
@dataclass(frozen=True, slots=True)
class ShortWalk(UnitReward):
    """1.0 for the goal on a shortest path, 0.1 less for each further turn, else 0.0."""

    name: str = "short_walk"
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Score the last sample of each walk."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float:
        progress = sample.state
        assert isinstance(progress, Progress)
        extra = progress.guesses - int(sample.task.meta["shortest"])
        return max(0.0, 1.0 - EXTRA_COSTS * extra) if progress.guessed else 0.0


@final
class TextGridWorld(LLMEnv):
    """The walk; arguments are those of `LLMEnv`."""

    _at: Place = (0, 0)
    _turns = 0
    _steps: dict[Place, int] = {}  # noqa: RUF012 - replaced at each reset, never changed

    def prompt(self, task: Task) -> str:
        """Begin at the start."""
        world = task.meta
        self._at, self._turns = tuple(world["start"]), 0
        walls = frozenset(map(tuple, world["walls"]))
        self._steps = distances(walls, tuple(world["goal"]), world["size"])
        return f"{task.prompt}\n{self._view()}"

    def reply(self, response: Completion) -> Reply:
        """Take a step; a way that is blocked, or no way, leaves the walker where it is."""
        self._turns += 1
        way = response.strip().strip(".").lower()
        if way not in STEPS:
            told = f"Answer with {', '.join(STEPS)}. {self._view()}"
        elif moved(self._at, way) not in self._steps:
            told = f"That way is blocked. {self._view()}"
        else:
            self._at = moved(self._at, way)
            told = self._view()
        if self._steps[self._at] == 0:
            return Reply("You are at the goal.", done=True)
        if self._turns >= self.task.meta["turns"]:
            return Reply("You did not reach the goal in time.", done=True)
        return Reply(told)

    def state(self) -> Progress:
        """Return what the reward sees: whether the goal is reached, and the turns so far."""
        return Progress(self._steps[self._at] == 0, self._turns)

    def solve(self) -> str:
        """Return the first step of a shortest path."""
        after = {way: self._steps.get(moved(self._at, way), MAX_TURNS) for way in STEPS}
        return min(after, key=lambda way: after[way])

    def _view(self) -> str:
        blocked = [way for way in STEPS if moved(self._at, way) not in self._steps]
        goal = self.task.meta["goal"]
        return (
            f"You are at row {self._at[0]}, column {self._at[1]}. The goal is at row {goal[0]}, "
            f"column {goal[1]}. Blocked: {', '.join(blocked) or 'nothing'}."
        )


@final
@dataclass(frozen=True, slots=True)
class MakeWorld:
    """Draws a world of `level` x `level` places."""

    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw worlds until one is of this split and has a path to its goal."""
        check_level(level, LEVELS)
        places = [(row, column) for row in range(level) for column in range(level)]

        def draw() -> tuple[str, tuple[dict[str, Any], int]]:
            while True:
                walls = frozenset(place for place in places if rng.random() < WALL_SHARE)
                start, goal = (places[i] for i in rng.choice(len(places), size=2, replace=False))
                steps = distances(walls - {goal}, goal, level)
                if start in steps:
                    world = {"size": level, "start": start, "goal": goal}
                    world["walls"] = sorted(walls - {start, goal})
                    return str(sorted(world.items())), (world, steps[start])

        world, shortest = draw_of_split(self.split, draw)
        turns = shortest + MAX_EXTRA
        return Task(
            id=task_id(str(sorted(world.items()))),
            prompt="Walk to the goal. Rows count to the south, columns to the east. Answer each "
            f"turn with {', '.join(STEPS)}.",
            source="llmgym/TextGridWorld-v0",
            level=level,
            meta={**world, "shortest": shortest, "turns": turns},
        )


def make(
    *,
    level: int = 3,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> TextGridWorld:
    """Build the environment.

    Args:
        level: rows and columns of a world, in [2, 7].
        split: "train", "test" for the held-out worlds, or "all".
        seed: another seed is another order of worlds.
        size: the number of worlds; None for no end.
        **kwargs: for `LLMEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    check_level(level, LEVELS)
    tasks = procedural(MakeWorld(split), seed, level=level, size=size)
    kwargs.setdefault("max_turns", MAX_TURNS)
    return TextGridWorld(tasks, kwargs.pop("reward", None) or ShortWalk(), **kwargs)
