"""`llmgym/Summarize-v0`: say what a short report says, in few words.

Reports are drawn: one sentence tells who did what, where and when, and others distract. A response
earns the share of these facts that it has, and nothing if it has more words than the prompt allows,
so copying the report does not pay. A stand-in for a reward model, which `reward` names: it reads
facts, not style. The hash of the facts decides the split a task belongs to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.envs.instruction_rules import words_of
from llmgym.messages import Sample, Score, Task
from llmgym.rewards.base import UnitReward

LEVELS = range(1, 7)
LIMIT = 15
"""Words that a summary may have."""
MAX_CHARACTERS = 20_000
NAMES = ("Mara", "Tomas", "Ines", "Jonas", "Noor", "Pavel", "Lucia", "Omar", "Greta", "Hugo")
DEEDS = (
    ("opened", "bakery"),
    ("repaired", "bridge"),
    ("painted", "school"),
    ("planted", "orchard"),
    ("sold", "theater"),
    ("found", "shipwreck"),
    ("founded", "orchestra"),
    ("restored", "lighthouse"),
)
PLACES = ("Lisbon", "Bergen", "Quito", "Nairobi", "Kyoto", "Tallinn", "Porto", "Cusco")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DISTRACTIONS = (
    "The weather was mild, and a light wind came from the sea.",
    "Many neighbors came to look, and some of them stayed until the evening.",
    "Nobody could say what it had cost.",
    "A band played old songs, and children ran between the tables.",
    "The mayor had promised to come, but the train was late.",
    "It had been planned for two years.",
    "There was tea for everybody, and the cake was gone within an hour.",
    "A reporter took pictures of the crowd.",
)


@final
@dataclass(frozen=True, slots=True)
class Facts(UnitReward):
    """The share of the facts that a response has; 0.0 for one of too many words.

    Its parts are `facts`, that share, and `short`, whether the words are few enough.
    """

    name: str = "facts"
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Read each response."""
        return [self._score(str(sample.text), sample.task) for sample in samples]

    @staticmethod
    def _score(text: str, task: Task) -> Score:
        words = words_of(text[:MAX_CHARACTERS])
        facts = list(task.answer)
        share = sum(fact in words for fact in facts) / len(facts)
        short = float(len(words) <= LIMIT and len(text) <= MAX_CHARACTERS)
        return Score(share * short, {"facts": share, "short": short})


@final
@dataclass(frozen=True, slots=True)
class MakeReport:
    """Draws a report of one sentence that counts and `level` others."""

    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw facts until they are of this split, then what distracts from them."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, tuple[str, str, str, str, str]]:
            name, place, day = (
                pool[int(rng.integers(len(pool)))] for pool in (NAMES, PLACES, DAYS)
            )
            verb, thing = DEEDS[int(rng.integers(len(DEEDS)))]
            facts = (name, verb, thing, place, day)
            return " ".join(facts), facts

        name, verb, thing, place, day = draw_of_split(self.split, draw)
        article = "an" if thing[0] in "aeiou" else "a"
        others = [DISTRACTIONS[i] for i in rng.choice(len(DISTRACTIONS), level, replace=False)]
        others.insert(
            int(rng.integers(1, level + 1)), f"On {day} {name} {verb} {article} {thing} in {place}."
        )
        prompt = f"Summarize in at most {LIMIT} words.\n\n{' '.join(others)}"
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=[fact.lower() for fact in (name, verb, thing, place, day)],
            solution=f"{name} {verb} {article} {thing} in {place} on {day}.",
            source="llmgym/Summarize-v0",
            level=level,
        )


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
        level: sentences that distract, in [1, 6].
        split: "train", "test" for the held-out facts, or "all".
        seed: another seed is another order of reports.
        size: the number of reports; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range.
    """
    check_split(split)
    check_level(level, LEVELS)
    tasks = procedural(MakeReport(split), seed, level=level, size=size)
    return SingleTurnEnv(tasks, kwargs.pop("reward", None) or Facts(), **kwargs)
