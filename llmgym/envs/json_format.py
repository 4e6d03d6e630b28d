"""`llmgym/JSONFormat-v0`: answer with a JSON object of given keys, types and values.

Half of the reward is for a response that is a JSON object and nothing else, a fenced block around
it included; the other half is the share of its keys that are right: there, of the type that was
asked for, and with the value that was asked for. A key too many counts as a wrong one. The hash of
the keys and values decides the split a task belongs to.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.envs.word_list import WORDS
from llmgym.messages import Sample, Score, Task
from llmgym.rewards.base import UnitReward

LEVELS = range(1, 9)
MAX_CHARACTERS = 20_000
FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", re.DOTALL)
KEYS = ("name", "city", "color", "count", "price", "active", "tags", "owner", "scores", "note")


def _word(rng: np.random.Generator) -> str:
    return WORDS[int(rng.integers(len(WORDS)))]


TYPES: Mapping[str, Callable[[np.random.Generator], Any]] = {
    "a string": _word,
    "an integer": lambda rng: int(rng.integers(-99, 1000)),
    "a boolean": lambda rng: bool(rng.integers(2)),
    "a list of strings": lambda rng: [_word(rng) for _ in range(int(rng.integers(1, 4)))],
    "a list of integers": lambda rng: rng.integers(0, 100, size=int(rng.integers(1, 4))).tolist(),
}
"""Types by the words of the prompt, with how a value is drawn."""


def is_same(value: object, expected: object) -> bool:
    """Return whether two JSON values are equal and of equal types: 1, 1.0 and true differ."""
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(is_same, value, expected))
    return type(value) is type(expected) and value == expected


def read_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is, in a fenced block or not; None for another text."""
    if len(text) > MAX_CHARACTERS:
        return None
    fenced = FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@final
@dataclass(frozen=True, slots=True)
class Formed(UnitReward):
    """Half for a JSON object, and half of the share of keys that are right.

    Its parts are `object` and `keys`, each in [0, 1].
    """

    name: str = "formed"
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Read each response."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> Score:
        value, expected = read_object(str(sample.text)), sample.task.answer
        if value is None:
            return Score(0.0, {"object": 0.0, "keys": 0.0})
        right = sum(key in value and is_same(value[key], expected[key]) for key in expected)
        share = right / len({*value, *expected})
        return Score((1.0 + share) / 2, {"object": 1.0, "keys": share})


@final
@dataclass(frozen=True, slots=True)
class MakeObject:
    """Draws an object of `level` keys of one split."""

    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw keys, types and values until they are of this split."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, dict[str, tuple[str, Any]]]:
            keys = [KEYS[i] for i in rng.choice(len(KEYS), size=level, replace=False)]
            kinds = [list(TYPES)[i] for i in rng.integers(len(TYPES), size=level)]
            fields = {key: (kind, TYPES[kind](rng)) for key, kind in zip(keys, kinds, strict=True)}
            return json.dumps(fields, sort_keys=True), fields

        fields = draw_of_split(self.split, draw)
        lines = [f'- "{key}", {kind}: {_shown(value)}' for key, (kind, value) in fields.items()]
        prompt = "Answer with a JSON object that has exactly these keys:\n" + "\n".join(lines)
        answer = {key: value for key, (_, value) in fields.items()}
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=answer,
            solution=json.dumps(answer),
            source="llmgym/JSONFormat-v0",
            level=level,
        )


def _shown(value: object) -> str:
    """Return a value in words, not in JSON: writing JSON is the task."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def make(
    *,
    level: int = 3,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment.

    Args:
        level: keys of the object, in [1, 8].
        split: "train", "test" for the held-out tasks, or "all".
        seed: another seed is another order of tasks.
        size: the number of tasks; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    check_level(level, LEVELS)
    tasks = procedural(MakeObject(split), seed, level=level, size=size)
    return SingleTurnEnv(tasks, kwargs.pop("reward", None) or Formed(), **kwargs)
