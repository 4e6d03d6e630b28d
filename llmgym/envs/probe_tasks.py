"""Probes: one letter per response; a trainer that fails on one has a fault that it names.

- `llmgym/ConstantTarget-v0`: always the same letter, whatever the prompt. Fails where the gradient
  does not reach the policy, or has the wrong sign.
- `llmgym/ConditionalTarget-v0`: the first letter of the prompt. Fails where the prompt is not read,
  as with a wrong attention mask or padding side.
- `llmgym/TwoInputs-v0`: `a` if the two letters of the prompt are equal, else `b`. Fails where a
  model sees one of them only.
- `llmgym/DelayedReward-v0`: three turns of which the first one counts, paid at the end. Fails where
  credit does not pass from turn to turn.
- `llmgym/GridNav-v0`: walk along a line to a goal by `l` and `r`. Fails where a value does not
  depend on the state, or where an end by success and one by the limit are confused.

The hash of a prompt decides the split it belongs to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, final

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_split, split_of_key
from llmgym.data.tasks import TaskList
from llmgym.env import LLMEnv, SingleTurnEnv
from llmgym.errors import TaskSourceError
from llmgym.messages import Completion, Reply, Task
from llmgym.rewards.rules import Exact

LETTERS = "abcdefgh"
NUM_TURNS = 3
PLACES = "abcdefghij"
"""Of the line of `GridNav`, from left to right."""


@lru_cache(maxsize=32)
def tasks_of(name: str, length: int, split: Split) -> TaskList:
    """Return every task of a probe that belongs to a split.

    Args:
        name: of the probe, without namespace and version.
        length: letters of a prompt.
        split: the split.
    """
    made = []
    for letters in product(LETTERS, repeat=length):
        prompt = " ".join(letters)
        if split in ("all", split_of_key(prompt)):
            answer = ANSWERS[name](letters)
            source = f"llmgym/{name}-v0"
            made.append(
                Task(
                    id=task_id(prompt), prompt=prompt, answer=answer, solution=answer, source=source
                )
            )
    if not made:
        raise TaskSourceError(f"no prompt of {length} letters is in the split {split}")
    return TaskList(tuple(made))


ANSWERS: dict[str, Callable[[tuple[str, ...]], str]] = {
    "ConstantTarget": lambda letters: "a",
    "ConditionalTarget": lambda letters: letters[0],
    "TwoInputs": lambda letters: "a" if letters[0] == letters[1] else "b",
    "DelayedReward": lambda letters: letters[0],
}
"""What each probe wants, of the letters of a prompt."""


def make_constant_target(*, split: Split = "train", **kwargs: Any) -> SingleTurnEnv:
    """Build the probe whose answer is always `a`.

    Args:
        split: "train", "test" for the held-out prompts, or "all".
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the exact answer.
    """
    return _single("ConstantTarget", split, kwargs)


def make_conditional_target(*, split: Split = "train", **kwargs: Any) -> SingleTurnEnv:
    """Build the probe whose answer is the first letter of the prompt.

    Args:
        split: "train", "test" for the held-out prompts, or "all".
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the exact answer.
    """
    return _single("ConditionalTarget", split, kwargs)


def make_two_inputs(*, split: Split = "train", **kwargs: Any) -> SingleTurnEnv:
    """Build the probe whose answer is whether two letters are equal.

    Args:
        split: "train", "test" for the held-out prompts, or "all".
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the exact answer.
    """
    return _single("TwoInputs", split, kwargs)


def _single(name: str, split: Split, kwargs: dict[str, Any]) -> SingleTurnEnv:
    check_split(split)
    reward = kwargs.pop("reward", None) or Exact()
    return SingleTurnEnv(tasks_of(name, 2, split), reward, **kwargs)


@final
@dataclass(frozen=True, slots=True)
class Walk:
    """Where a walk along the line is."""

    at: int
    goal: int


@final
class DelayedReward(LLMEnv):
    """Three turns; what the first response was is paid after the last."""

    _is_right = False
    _turns = 0

    def prompt(self, task: Task) -> str:
        """Begin with nothing answered."""
        self._is_right, self._turns = False, 0
        return str(task.prompt)

    def reply(self, response: Completion) -> Reply:
        """Note the first response; let the others pass."""
        if self._turns == 0:
            self._is_right = response.strip() == self.task.answer
        self._turns += 1
        if self._turns < NUM_TURNS:
            return Reply("and?")
        return Reply(done=True, reward=float(self._is_right))


def make_delayed_reward(*, split: Split = "train", **kwargs: Any) -> DelayedReward:
    """Build the probe that pays its first turn at the end.

    Args:
        split: "train", "test" for the held-out prompts, or "all".
        **kwargs: for `LLMEnv`; a `reward` is added to what the probe pays.
    """
    check_split(split)
    return DelayedReward(tasks_of("DelayedReward", 2, split), **kwargs)


@final
class GridNav(LLMEnv):
    """A walk along a line of ten places, which are letters."""

    _walk = Walk(0, 0)

    def prompt(self, task: Task) -> str:
        """Begin at the start."""
        self._walk = Walk(task.meta["start"], task.meta["goal"])
        return str(task.prompt)

    def reply(self, response: Completion) -> Reply:
        """Take a step to the left or to the right; another response stays."""
        step = {"l": -1, "r": 1}.get(response.strip(), 0)
        at = min(max(self._walk.at + step, 0), len(PLACES) - 1)
        self._walk = Walk(at, self._walk.goal)
        if at == self._walk.goal:
            return Reply(done=True, reward=1.0)
        return Reply(f"{PLACES[at]} {PLACES[self._walk.goal]}")

    def solve(self) -> str:
        """Step towards the goal."""
        return "l" if self._walk.at > self._walk.goal else "r"


@lru_cache(maxsize=4)
def walks(split: Split) -> TaskList:
    """Return every walk of a split: a start and another place as the goal."""
    made = []
    for start, goal in product(range(len(PLACES)), repeat=2):
        prompt = f"{PLACES[start]} {PLACES[goal]}"
        if start != goal and split in ("all", split_of_key(prompt)):
            meta = {"start": start, "goal": goal}
            source = "llmgym/GridNav-v0"
            made.append(Task(id=task_id(prompt), prompt=prompt, source=source, meta=meta))
    return TaskList(tuple(made))


def make_grid_nav(*, split: Split = "train", **kwargs: Any) -> GridNav:
    """Build the walk along a line: 1.0 for the goal, which may take 12 turns.

    Args:
        split: "train", "test" for the held-out walks, or "all".
        **kwargs: for `LLMEnv`; a `reward` is added to what the walk pays.
    """
    check_split(split)
    kwargs.setdefault("max_turns", 12)
    return GridNav(walks(split), **kwargs)
