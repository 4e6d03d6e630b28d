"""Environments whose reward is an opinion: a preference model's, or a classifier of emotions.

Name the model as any other reward, `--rewards.0.model FOLDER`. Without one, rules stand in, so that
both environments are there without any file.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, final

from llmgym.content import LastAssistant
from llmgym.data.rows import Columns, task_id
from llmgym.data.splits import Split, check_split, read_split
from llmgym.data.tasks import TaskList, from_list
from llmgym.env import RewardSpec, SingleTurnEnv
from llmgym.envs.feedback_samples import BEGINNINGS, COMPARED, ENDINGS, WORDS
from llmgym.errors import RewardError, TaskSourceError
from llmgym.messages import Message, Sample, Task
from llmgym.rewards.base import Reward, UnitReward

HELD_OUT_ONE_IN = 4
"""Of the texts written here, this many to one are held out."""


@final
@dataclass(frozen=True, kw_only=True)
class Named(UnitReward):
    """The share of the words in the column `points` that a response has; half without an end.

    A stand-in for a preference model: it likes a whole sentence that says what matters.
    """

    name: str = "named"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Judge each response."""
        return [self._judged(sample) for sample in samples]

    def _judged(self, sample: Sample) -> float:
        text = str(sample.text).strip()
        points = str(sample.task.meta["points"]).split()
        share = len(set(points) & set(words(text))) / len(points)
        return share if text.endswith((".", "!", "?")) else share / 2


@final
@dataclass(frozen=True, kw_only=True)
class Lexicon(Reward):
    """Words of an emotion against words of the other one: 1 to -1, and 0 without any.

    It reads the response alone, since the beginning is given. A stand-in for a classifier.
    """

    emotion: str
    name: str = "lexicon"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Count the words of each response."""
        return [self._judged(words(str(sample.text))) for sample in samples]

    def _judged(self, words: Sequence[str]) -> float:
        matching = sum(word in WORDS[self.emotion] for word in words)
        tones = sum(word in listed for word in words for listed in WORDS.values())
        return (2 * matching - tones) / max(1, tones)


def words(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return re.findall(r"[a-z']+", text[:20_000].lower())


def make_preference(
    *,
    path: str | None = None,
    split: Split = "train",
    reward: RewardSpec = None,
    prompt_column: str = "prompt",
    chosen_column: str | None = None,
    last_assistant: LastAssistant = "raise",
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment of prompts whose responses a reward model judges.

    Args:
        path: a data file or a folder of them; None for the prompts written here.
        split: "train", "test" or "all"; `llmgym/data/splits.py` says which rows that is.
        reward: judges the responses: a reward model, or any other; with a `path` it is needed.
        prompt_column: the column of prompts, text or lists of messages.
        chosen_column: the column of preferred responses, which `llmgym sft` then learns from.
        last_assistant: what messages are that end with the assistant: an error ("raise"), a prompt
            and its answer ("split"), or a prompt whose response has begun ("prefill").
        **kwargs: for `SingleTurnEnv`.

    Raises:
        TaskSourceError: the file cannot be read.
        RewardError: there is a file, and nothing to judge its responses by.
    """
    if path is None:
        return SingleTurnEnv(compared(split), reward or Named(), **kwargs)
    if reward is None:
        raise RewardError(
            f"nothing says which responses to the prompts of {path} are preferred.\n"
            "Name a reward model, --rewards.0.model FOLDER; llmgym reward-model makes one"
        )
    columns = Columns(prompt=prompt_column, solution=chosen_column, last_assistant=last_assistant)
    return SingleTurnEnv(read_split(path, split, columns), reward, **kwargs)


@lru_cache(maxsize=3)
def compared(split: Split) -> TaskList:
    """Return the prompts written here, of one split or of both."""
    names: list[str] = ["prompt", "points", "chosen", "rejected"]
    rows = [dict(zip(names, row, strict=True)) for row in COMPARED]
    return _part(from_list(rows, Columns(solution="chosen"), source="llmgym/Preference-v0"), split)


def make_sentiment(  # noqa: PLR0913 - each is a setting of the config's `kwargs`
    *,
    path: str | None = None,
    split: Split = "train",
    reward: RewardSpec = None,
    emotion: str = "positive",
    prompt_column: str = "text",
    columns: Sequence[str] | None = None,
    num_words: int = 3,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment that continues a text in a target emotion.

    The prompt is the beginning of what the assistant says, and the response goes on from there. A
    policy that learned whole texts, without prompts, so sees what it knows.

    Args:
        path: a data file of texts, or a folder of them; None for the beginnings written here.
        split: "train", "test" or "all"; `llmgym/data/splits.py` says which rows that is. A
            beginning that is trained on is not held out.
        reward: judges beginning and response together, such as a classifier; None counts words.
        emotion: "positive" or "negative": what is counted, without another reward.
        prompt_column: the column of texts.
        columns: the column names of a CSV or TSV file without a header line.
        num_words: words of a text that its beginning has; shorter texts are left out.
        **kwargs: for `SingleTurnEnv`.

    Raises:
        TaskSourceError: the file cannot be read, or has no text that is long enough.
        RewardError: no such emotion.
    """
    if emotion not in WORDS:
        raise RewardError(f"emotion is one of {', '.join(WORDS)}; got {emotion!r}")
    if num_words < 1:
        raise TaskSourceError(f"num_words must be 1 or more; got {num_words}")
    if path is None:
        tasks = begun(split, emotion)
    else:
        names = None if columns is None else tuple(columns)
        tasks = _begun_of(path, split, Columns(prompt=prompt_column, names=names), num_words)
    return SingleTurnEnv(tasks, reward or Lexicon(emotion=emotion), **kwargs)


@lru_cache(maxsize=6)
def begun(split: Split, emotion: str) -> TaskList:
    """Return the beginnings written here, of one split or of both, each with an ending."""
    endings = ENDINGS[emotion]
    tasks = [
        replace(_beginning(text, "llmgym/Sentiment-v0"), solution=endings[number % len(endings)])
        for number, text in enumerate(BEGINNINGS)
    ]
    return _part(TaskList(tuple(tasks)), split)


def _part(tasks: TaskList, split: Split) -> TaskList:
    """Return a split of tasks, chosen by content: neighbours alike are on both sides."""
    check_split(split)
    if split == "all":
        return tasks
    order = sorted(task.id for task in tasks.tasks)
    held_out = set(order[: len(order) // HELD_OUT_ONE_IN])
    mine = (task for task in tasks.tasks if (task.id in held_out) == (split == "test"))
    return TaskList(tuple(mine))


@lru_cache(maxsize=16)
def _begun_of(path: str, split: Split, columns: Columns, num_words: int) -> TaskList:
    """Return the different beginnings of a file's texts; those of training are never held out."""
    first = re.compile(rf"\s*(\S+(?:\s+\S+){{{num_words - 1}}})\s+\S")
    tasks: dict[str, Task] = {}
    for task in read_split(path, split, columns).tasks:
        begins = first.match(task.prompt) if isinstance(task.prompt, str) else None
        if begins is not None:
            made = _beginning(begins[1], task.source)
            tasks.setdefault(made.id, made)
    if split == "test":
        known = {task.id for task in _begun_of(path, "train", columns, num_words).tasks}
        tasks = {task_key: task for task_key, task in tasks.items() if task_key not in known}
    if not tasks:
        raise TaskSourceError(
            f"{path} has no text of more than {num_words} words for the split {split}"
            f"{' whose beginning is not trained on' if split == 'test' else ''}.\n"
            "Lower num_words, or name another column: --envs.0.kwargs.prompt_column NAME"
        )
    return TaskList(tuple(tasks.values()))


def _beginning(text: str, source: str) -> Task:
    prompt = (Message("assistant", text),)
    return Task(id=task_id(prompt), prompt=prompt, source=source)
