"""`llmgym/FrozenLake-v0`: cross a frozen lake in text, a step per turn.

Gymnasium's FrozenLake through `GymText`. A prompt shows the map; each response is `left`, `down`,
`right` or `up`, and the map comes back with the player on it. The goal pays 1.0, a hole ends the
episode. Maps are drawn, and the hash of a map decides the split it belongs to; `map="4x4"` and
`map="8x8"` are Gymnasium's own map, the only task of both splits.
"""

import math
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, final

import gymnasium
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import MAPS

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.envs.gym_text import GymText, named_action, shortest_path
from llmgym.errors import TaskSourceError
from llmgym.messages import Task

ACTIONS = ("left", "down", "right", "up")
LEVELS = range(3, 9)
HOLE_SHARE = 0.2
MAX_DRAWN_MAPS = 1000
MAX_TURNS = 32
RULES = (
    "You are P on a frozen lake. F is ice, H is a hole, G is the goal. Answer each turn with left, "
    "down, right or up."
)


def rows_of(env: gymnasium.Env) -> list[str]:
    """Return the rows of a map as text."""
    desc: Any = env.unwrapped.desc  # type: ignore[attr-defined]
    return [b"".join(row).decode() for row in desc]


def describe(env: gymnasium.Env, observation: int) -> str:
    """Return the map with the player on it; of the end, what happened."""
    rows = rows_of(env)
    row, column = divmod(int(observation), len(rows[0]))
    ground = rows[row][column]
    if ground in "GH":
        return "You reached the goal." if ground == "G" else "You fell into a hole."
    rows[row] = f"{rows[row][:column]}P{rows[row][column + 1 :]}"
    return "\n".join(" ".join(line.replace("S", "F")) for line in rows)


def parse(env: gymnasium.Env, text: str) -> int | None:
    """Return the number of the direction that a response is."""
    del env
    return named_action(ACTIONS, text)


def solve(env: gymnasium.Env) -> str | None:
    """Return the first step of a shortest path to the goal."""
    inner: Any = env.unwrapped
    path = shortest_path(inner.P, int(inner.s), lambda reward, _: reward > 0)
    return None if path is None else ACTIONS[path[0]]


@final
@dataclass(frozen=True, slots=True)
class MakeLake:
    """Draws a map of `level` x `level` fields whose goal can be reached."""

    split: Split
    slippery: bool

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw maps until one of this split has a path to its goal."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, list[str]]:
            for _ in range(MAX_DRAWN_MAPS):
                fields = np.where(rng.random((level, level)) < HOLE_SHARE, "H", "F")
                fields[0, 0], fields[-1, -1] = "S", "G"
                rows = ["".join(row) for row in fields]
                if path_length(tuple(rows)) <= MAX_TURNS:
                    return "\n".join(rows), rows
            raise AssertionError("a map of few holes has a path")

        return lake(draw_of_split(self.split, draw), self.slippery)


def lake(rows: list[str], slippery: bool) -> Task:
    """Return the task of a map."""
    content = "\n".join(rows)
    return Task(
        id=task_id(f"{content} {slippery}"),
        prompt=RULES,
        source="llmgym/FrozenLake-v0",
        level=len(rows),
        meta={"kwargs": {"desc": rows, "is_slippery": slippery}, "seed": 0},
    )


@lru_cache(maxsize=4096)
def path_length(rows: tuple[str, ...]) -> float:
    """Return the fewest steps from start to goal; infinite where there is no path."""
    size, waiting, steps = len(rows), deque([(0, 0)]), {(0, 0): 0}
    while waiting:
        row, column = waiting.popleft()
        for place in ((row, column - 1), (row + 1, column), (row, column + 1), (row - 1, column)):
            inside = 0 <= place[0] < size and 0 <= place[1] < size
            if inside and place not in steps and rows[place[0]][place[1]] != "H":
                steps[place] = steps[row, column] + 1
                waiting.append(place)
    return steps.get((size - 1, size - 1), math.inf)


def make(
    *,
    map: Literal["random", "4x4", "8x8"] = "random",
    level: int = 4,
    slippery: bool = False,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> GymText:
    """Build the environment.

    Args:
        map: "random" draws a map per task; "4x4" and "8x8" are Gymnasium's own.
        level: rows and columns of a random map, in [3, 8].
        slippery: True for ice on which two steps of three go to a side. No solution is known then.
        split: "train", "test" for the held-out maps, or "all".
        seed: another seed is another order of maps.
        size: the number of random maps; None for no end.
        **kwargs: for `GymText`, such as `max_turns`, 32 without it, or `invalid`.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    if map not in ("random", *MAPS):
        raise TaskSourceError(f"map must be random, {' or '.join(MAPS)}; got {map!r}")
    check_level(level, LEVELS)
    if map == "random":
        tasks: Any = procedural(MakeLake(split, slippery), seed, level=level, size=size)
    else:
        tasks = [lake(list(MAPS[map]), slippery)]
    kwargs.setdefault("max_turns", MAX_TURNS)
    kwargs.setdefault("reward_bounds", (0.0, 1.0) if kwargs.get("reward") is None else None)
    return GymText(
        "FrozenLake-v1",
        tasks,
        describe=describe,
        parse=parse,
        solve=None if slippery else solve,
        expects="Answer with left, down, right or up.",
        **kwargs,
    )
