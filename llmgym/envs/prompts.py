"""`llmgym/Prompts-v0`: your own prompts, judged by your own reward.

Any JSONL, Parquet, CSV or TSV file with a column of prompts. Every other column reaches the reward
by its name. Without a file, a few prompts written here are answered for practice.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, final

from llmgym.content import LastAssistant
from llmgym.data.rows import Columns, MultiLabel
from llmgym.data.splits import Split, check_split, read_split
from llmgym.data.tasks import TaskSource, from_list
from llmgym.env import RewardSpec, SingleTurnEnv
from llmgym.errors import RewardError
from llmgym.messages import Sample
from llmgym.rewards.base import Reward, UnitReward
from llmgym.rewards.rules import Exact

PROMPTS = (
    ("Name a color of the rainbow.", "red orange yellow green blue indigo violet"),
    ("Name a day of the week.", "monday tuesday wednesday thursday friday saturday sunday"),
    ("Name a month with 30 days.", "april june september november"),
    ("Name a planet that has rings.", "jupiter saturn uranus neptune"),
    ("Name a primary color of light.", "red green blue"),
    ("Name an ocean.", "atlantic pacific indian arctic southern"),
)
TEST_PROMPTS = (
    ("Name a season of the year.", "spring summer autumn fall winter"),
    ("Name a vowel.", "a e i o u"),
)


@final
class OneOf(UnitReward):
    """1.0 where the response is one of the words in the column `words`, 0.0 elsewhere."""

    name = "one_of"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Look each response up."""
        return [float(self._is_listed(sample)) for sample in samples]

    def _is_listed(self, sample: Sample) -> bool:
        return str(sample.text).strip().strip(".").lower() in sample.task.meta["words"].split()


@lru_cache(maxsize=3)
def embedded(split: Split) -> TaskSource:
    """Return the prompts written here, of one split or of both."""
    check_split(split)
    pairs = {"train": PROMPTS, "test": TEST_PROMPTS, "all": PROMPTS + TEST_PROMPTS}[split]
    rows = [
        {"prompt": prompt, "words": words, "example": words.split()[0]} for prompt, words in pairs
    ]
    return from_list(rows, Columns(solution="example"), source="llmgym/Prompts-v0")


def make(  # noqa: PLR0913 - each is a setting of the config's `kwargs`
    *,
    path: str | None = None,
    split: Split = "train",
    reward: RewardSpec = None,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    solution_column: str | None = None,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    labels: str | None = None,
    multi_label: MultiLabel = "first",
    last_assistant: LastAssistant = "raise",
    format: str = "auto",
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment.

    Args:
        path: a data file or a folder of them; None for the prompts written here.
        split: "train", "test" or "all"; `llmgym/data/splits.py` says which rows that is.
        reward: judges the responses; with a `path` and None, they are compared with the column
            of answers, or else of solutions.
        prompt_column: the column of prompts, text or lists of messages. A dotted name, here and
            below, reaches into mappings: `reward_model.ground_truth`.
        answer_column: the column that rewards such as `exact` compare with, and that a function
            gets as `answer`; None for the column `answer`, where there is one.
        solution_column: the column of perfect responses.
        columns: the column names of a CSV or TSV file without a header line.
        label_column: a column of label ids, which `labels` turns into names.
        labels: a file of label names, one a line; None: `labels.txt` beside the data file.
        multi_label: what a row with several labels becomes: "first", "drop" or "all".
        last_assistant: what messages are that end with the assistant: an error ("raise"), a prompt
            and its answer ("split"), or a prompt whose response has begun ("prefill").
        format: what the rows were written for: "trl", "verl" and others, see
            `llmgym/data/formats.py`; "auto" to tell it by the first row.
        **kwargs: for `SingleTurnEnv`.

    Raises:
        TaskSourceError: the file cannot be read.
        RewardError: there is a file, and nothing to judge its responses by.
    """
    if path is None:
        return SingleTurnEnv(embedded(split), reward or OneOf(), **kwargs)
    names = Columns(
        prompt=prompt_column,
        answer=answer_column,
        solution=solution_column,
        names=None if columns is None else tuple(columns),
        label=label_column,
        labels=labels,
        multi_label=multi_label,
        last_assistant=last_assistant,
        format=format,
    )
    tasks = read_split(path, split, names)
    return SingleTurnEnv(tasks, reward or default_reward(path, names), **kwargs)


def default_reward(path: str, columns: Columns) -> Reward:
    """Return what judges the prompts of a file when no reward is named: equality with its answers.

    Raises:
        RewardError: the file's columns have neither answers nor solutions.
    """
    column = columns.answer or columns.solution
    if column is None and columns.last_assistant == "split":
        return Exact()
    if column is None:
        raise RewardError(
            f"nothing says what a response to the prompts of {path} is worth.\n"
            "Name a function of yours, --reward my_reward.py:score, or the column to compare with, "
            "--envs.0.kwargs.answer_column NAME"
        )
    return Exact(column=column)
