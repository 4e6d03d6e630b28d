"""`llmgym/Instructions-v0`: write about a topic under two rules that a program can check.

A prompt is a topic and two rules of different kinds. An answer earns 1.0 if it keeps both, has
eight words or more and was not cut at the limit of tokens, else 0.0; each of these is a part of the
reward. Two kinds of rule that stand in one prompt belong to one split, and so does a topic: a
held-out prompt has a combination and a topic that were never trained on. Rules that a program
checks are the idea of IFEval (Zhou et al. 2023, arXiv:2311.07911); these were written here.

A word is a run of letters and digits; an apostrophe or a hyphen between two of them belongs to it,
so that "moonlight", "moon's" and "full-moon" are not the word "moon". Only the rule `lowercase`
looks at the case of letters.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any, final

import numpy as np

from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_split
from llmgym.data.tasks import procedural
from llmgym.env import SingleTurnEnv
from llmgym.envs.instruction_rules import KINDS, USUAL, WORD, Rule, words_of
from llmgym.errors import TaskSourceError
from llmgym.messages import Sample, Score, Task
from llmgym.rewards.base import UnitReward

MIN_WORDS = 8
"""An answer of fewer words fails, whatever its rules."""
MAX_CHARACTERS = 20_000
"""A longer answer fails: it bounds the work of every rule."""


CLASHES = (
    ("start", "list"),
    ("sentences", "list"),
    ("long", "short"),
    ("sentences", "paragraphs"),
    ("list", "paragraphs"),
    ("list", "quote"),
    ("list", "title"),
    ("start", "title"),
    ("sentences", "title"),
    ("quote", "title"),
    ("paragraphs", "title"),
    ("lowercase", "capitals"),
    ("lowercase", "postscript"),
    ("quote", "postscript"),
    ("paragraphs", "postscript"),
    *((kind, "postscript") for kind in ("end", "question", "sentences", "list")),
)
COMBINATIONS = tuple(
    (first, other)
    for first, other in combinations(KINDS, 2)
    if (KINDS[first].demands or KINDS[other].demands) and (first, other) not in CLASHES
)
"""Kinds that stand in one prompt: one of them at least fails text that knows nothing of it."""
HELD_OUT = frozenset(
    {
        ("contain", "question"),
        ("contain", "short"),
        ("repeat", "sentences"),
        ("repeat", "no_comma"),
        ("repeat", "list"),
        ("number", "long"),
        ("number", "exclude"),
        ("start", "sentences"),
        ("start", "exclude"),
        ("start", "lowercase"),
        ("end", "no_comma"),
        ("question", "exclude"),
        ("long", "no_comma"),
        ("contain", "exclaim"),
        ("contain", "capitals"),
        ("question", "paragraphs"),
        ("exclude", "paragraphs"),
        ("long", "quote"),
        ("repeat", "postscript"),
        ("number", "title"),
        ("exclaim", "quote"),
    }
)
"""The combinations of the split "test"; every kind is in one of them and in several others."""

TOPICS = ("rain", "a dog", "the moon", "tea", "a train", "the sea", "school", "a birthday",
          "mountains", "football", "a new house", "cooking", "the city", "snow", "a long walk",
          "dreams", "old books", "a cat", "the night sky", "spring", "a farm", "dancing", "trees",
          "a small shop")  # fmt: skip
HELD_OUT_TOPICS = ("clouds", "a horse", "coffee", "a boat", "the desert", "painting", "autumn",
                   "a museum")  # fmt: skip
FILLER = ("we", "think", "about", "this", "with", "great", "care", "because", "it", "makes", "life",
          "so", "much", "better", "for", "people", "who", "live", "here", "now")  # fmt: skip
"""Words of gold answers; no rule excludes or counts one of them."""


@lru_cache(maxsize=64)
def combinations_of(split: Split, kinds: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the combinations of some kinds that belong to a split."""
    return tuple(
        pair
        for pair in COMBINATIONS
        if set(pair) <= set(kinds) and (split == "all" or (pair in HELD_OUT) == (split == "test"))
    )


def topics_of(split: Split) -> tuple[str, ...]:
    """Return the topics of a split."""
    return {"train": TOPICS, "test": HELD_OUT_TOPICS, "all": TOPICS + HELD_OUT_TOPICS}[split]


def gold(rules: Sequence[Rule]) -> str:
    """Return an answer that keeps the rules, whatever it says: it is built from them."""
    of = {rule.kind: rule for rule in rules}
    none = Rule("")
    start = [of["start"].text] if "start" in of else []
    end = ["the", of["end"].text] if "end" in of else []
    repeated = of.get("repeat", none)
    needed = [repeated.text] * repeated.number + of.get("contain", none).text.split()
    needed += [str(of["number"].number)] if "number" in of else []
    groups = max(1, *(of.get(kind, none).number for kind in ("sentences", "list", "paragraphs")))
    least = max(MIN_WORDS, of.get("long", none).number)
    room = max(least - len(start) - len(needed) - len(end), 2 * groups)
    middle = [*needed, *FILLER[:room]]
    cuts = [round(i * len(middle) / groups) for i in range(groups + 1)]
    texts = [" ".join(middle[a:b]) for a, b in pairwise(cuts)]
    texts[0] = " ".join([*start, texts[0]])
    texts[-1] = " ".join([texts[-1], *end])
    texts = [text.lower() if "lowercase" in of else text.capitalize() for text in texts]
    texts[0] += "!" * of.get("exclaim", none).number
    texts[-1] += "?" if "question" in of else "" if "exclaim" in of and groups == 1 else "."
    return _laid_out(texts, of)


def _laid_out(texts: Sequence[str], of: Mapping[str, Rule]) -> str:
    """Join sentences as the rules about the form ask for."""
    if "list" in of:
        joined = "\n".join(f"- {text}" for text in texts)
    else:
        joined = ("\n\n" if "paragraphs" in of else ". ").join(texts)
    count = of["capitals"].number if "capitals" in of else 0
    for word in [word for word in WORD.findall(joined) if word.isalpha() and len(word) > 1][:count]:
        joined = re.sub(rf"\b{word}\b", word.upper(), joined, count=1)
    if "title" in of:
        joined = f"<<about it>>\n{joined}"
    if "postscript" in of:
        joined += "\nP.S. we like it"
    return f'"{joined}"' if "quote" in of else joined


@final
@dataclass(frozen=True, slots=True)
class MakePrompt:
    """Draws a topic and two rules of one split."""

    split: Split
    kinds: tuple[str, ...] = USUAL

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw a combination, its words and numbers, and a topic."""
        pairs, topics = combinations_of(self.split, self.kinds), topics_of(self.split)
        kinds = [str(kind) for kind in rng.permutation(pairs[int(rng.integers(len(pairs)))])]
        topic = topics[int(rng.integers(len(topics)))]
        rules: list[Rule] = []
        for kind in kinds:
            used = {rule.text for rule in rules if rule.text}
            texts = [text for text in KINDS[kind].texts if text not in used]
            numbers = KINDS[kind].numbers
            text, number = rng.integers(len(texts)), rng.integers(len(numbers))
            rules.append(Rule(kind, texts[int(text)], numbers[int(number)]))
        prompt = " ".join([f"Write about {topic}.", *map(str, rules)])
        return Task(
            id=task_id(prompt),
            prompt=prompt,
            answer=[[rule.kind, rule.text, rule.number] for rule in rules],
            solution=gold(rules),
            source="llmgym/Instructions-v0",
            level=level,
            meta={"topic": topic, "combination": " + ".join(sorted(kinds))},
        )


@final
@dataclass(frozen=True)
class Follows(UnitReward):
    """1.0 for an answer that keeps both rules, has eight words or more and was not cut.

    Its parts: one for each rule, named by its kind; `length`, whether the answer has eight words or
    more; `finished`, whether it ended before the limit of tokens; `success`, whether all of these.

    Attributes:
        partial: in [0, 1]: an answer that only breaks one of its two rules earns half of this.
    """

    partial: float = 0.0
    name: str = "follows"
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Judge each answer."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> Score:
        text = str(sample.text)
        is_read = len(text) <= MAX_CHARACTERS
        rules = [Rule(*entry) for entry in sample.task.answer]
        kept = {rule.kind: float(is_read and rule.holds(text)) for rule in rules}
        length = float(is_read and len(words_of(text)) >= MIN_WORDS)
        finished = float(sample.terminated)
        success = float(all((*kept.values(), length, finished)))
        share = sum(kept.values()) / len(kept)
        value = success if success else self.partial * share * length * finished
        parts = {**kept, "length": length, "finished": finished, "success": success}
        return Score(value, parts)


def make(
    *,
    kinds: Sequence[str] = USUAL,
    partial: float = 0.0,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment: 1.0 for an answer that keeps both rules, else 0.0.

    Args:
        kinds: of rules, two of which are in a prompt. `end`, `list`, `lowercase`, `number`,
            `exclaim`, `paragraphs`, `quote`, `postscript`, `capitals` and `title` exist as well:
            a small model keeps them so rarely that it learns nothing from them.
        partial: in [0, 1]: an answer that only breaks one of its two rules earns half of this. 0
            pays for success alone.
        split: "train", "test" for held-out combinations and topics, or "all".
        seed: another seed is another order of tasks.
        size: the number of tasks; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range, or kinds that make no prompt of this split.
    """
    check_split(split)
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise TaskSourceError(
            f"no kind of rule is named {unknown[0]}; there are {', '.join(KINDS)}"
        )
    if not combinations_of(split, tuple(kinds)):
        raise TaskSourceError(f"no prompt of the split {split} has two rules of {', '.join(kinds)}")
    if not 0 <= partial <= 1:
        raise TaskSourceError(f"partial must be in [0, 1], got {partial}")
    tasks = procedural(MakePrompt(split, tuple(kinds)), seed, level=2, size=size)
    reward = kwargs.pop("reward", None) or Follows(partial)
    return SingleTurnEnv(tasks, reward, **kwargs)
