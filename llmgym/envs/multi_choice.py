"""`llmgym/MultiChoice-v0`: choose one of several options by its letter.

Questions are drawn, about numbers and words, or come from a file with the columns `question`,
`options` (a list) and `answer` (the letter, the position from 0, or the text of the right option).
Options are shuffled by the seed, so that their place says nothing. The hash of the question and its
options decides the split of a drawn task; a file is divided as any other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from string import ascii_uppercase
from typing import Any, final

import numpy as np

from llmgym.data.rows import Columns, task_id
from llmgym.data.splits import Split, check_level, check_split, draw_of_split, read_split
from llmgym.data.tasks import TaskList, procedural
from llmgym.env import SingleTurnEnv
from llmgym.envs.word_list import COMMON
from llmgym.errors import TaskSourceError
from llmgym.messages import Task
from llmgym.rewards.rules import Choice

LEVELS = range(2, 9)
QUESTIONS = (
    "Which number is the largest?",
    "Which number is the smallest?",
    "Which word comes first in the alphabet?",
    "Which word comes last in the alphabet?",
    "Which word has the most letters?",
)


def drawn_question(rng: np.random.Generator, count: int) -> tuple[str, list[str], int]:
    """Draw a question, its options in one order, and the number of the right one."""
    kind = int(rng.integers(len(QUESTIONS)))
    if kind < 2:
        values = rng.choice(1000, size=count, replace=False)
        right = int(values.argmax() if kind == 0 else values.argmin())
        return QUESTIONS[kind], [str(value) for value in values], right
    while True:
        options = [COMMON[i] for i in rng.choice(len(COMMON), size=count, replace=False)]
        if kind < 4:
            right = options.index(min(options) if kind == 2 else max(options))
            return QUESTIONS[kind], options, right
        lengths = [len(option) for option in options]
        if lengths.count(max(lengths)) == 1:
            return QUESTIONS[kind], options, lengths.index(max(lengths))


def task_of(question: str, options: Sequence[str], right: int, level: int) -> Task:
    """Return the task of a question whose options are in the order of their letters."""
    lines = [
        f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    prompt = "\n".join([question, *lines, "Answer with the letter."])
    return Task(
        id=task_id(prompt),
        prompt=prompt,
        answer=ascii_uppercase[right],
        solution=ascii_uppercase[right],
        source="llmgym/MultiChoice-v0",
        level=level,
        meta={"question": question, "options": list(options)},
    )


@final
@dataclass(frozen=True, slots=True)
class MakeQuestion:
    """Draws a question with `level` options of one split."""

    split: Split

    def __call__(self, rng: np.random.Generator, level: int) -> Task:
        """Draw questions until one is of this split."""
        check_level(level, LEVELS)

        def draw() -> tuple[str, tuple[str, list[str], int]]:
            question, options, right = drawn_question(rng, level)
            return json.dumps([question, sorted(options)]), (question, options, right)

        question, options, right = draw_of_split(self.split, draw)
        return task_of(question, options, right, level)


def _right_option(row: Mapping[str, Any], options: Sequence[str], place: str) -> int:
    answer = row.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    text = str(answer).strip()
    if options.count(text) == 1:
        return options.index(text)
    letters = ascii_uppercase[: len(options)]
    if len(text) == 1 and text.upper() in letters:
        return letters.index(text.upper())
    raise TaskSourceError(
        f"the answer {answer!r} of {place} is no letter of {letters}, no position and no option"
    )


@lru_cache(maxsize=16)
def read_questions(path: str, split: Split, seed: int) -> TaskList:
    """Read the questions of a file and shuffle the options of each.

    Raises:
        TaskSourceError: the file cannot be read, or a row has no options or no right one.
    """
    source = read_split(path, split, Columns(prompt="question"))
    tasks = []
    for number, read in enumerate(source.tasks):
        listed, place = read.meta.get("options"), read.place or f"row {number + 1}"
        if not isinstance(listed, list) or len(listed) not in LEVELS:
            raise TaskSourceError(
                f"{place} needs a list of {LEVELS[0]} to {LEVELS[-1]} options in the column options"
            )
        options = [str(option) for option in listed]
        right = _right_option(read.meta, options, place)
        order = np.random.default_rng((seed, number)).permutation(len(options)).tolist()
        shuffled = [options[i] for i in order]
        task = task_of(str(read.prompt), shuffled, order.index(right), len(options))
        # The same question is the same task, however its options are shuffled.
        tasks.append(replace(task, id=read.id, place=read.place))
    return TaskList(tuple(tasks))


def make(
    *,
    path: str | None = None,
    level: int = 4,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment: 1.0 for the letter of the right option, 0.0 otherwise.

    Args:
        path: a file or folder of questions; None draws them.
        level: options of a drawn question, in [2, 8].
        split: "train", "test" for the held-out questions, or "all".
        seed: another seed is another order of tasks, and of the options of a file.
        size: the number of drawn tasks; None for no end.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: a setting out of its range, or a file that cannot be read.
    """
    check_split(split)
    check_level(level, LEVELS)
    tasks: Any = procedural(MakeQuestion(split), seed, level=level, size=size)
    if path is not None:
        tasks = read_questions(path, split, seed)
    reward = kwargs.pop("reward", None) or Choice(options=ascii_uppercase[: LEVELS[-1]])
    return SingleTurnEnv(tasks, reward, **kwargs)
