"""`llmgym/GSM8K-v0`: grade-school word problems, solved in steps with calculator annotations.

The data format is that of the GSM8K data set: `question`, and `answer`, a worked solution whose
calculations are annotated (`48/2 = <<48/2=24>>24`) and whose last line is `#### 24`. A few problems
written here are built in; `path` reads a file of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import fsum
from typing import Any, final

from llmgym.content import LastAssistant
from llmgym.data.rows import Columns
from llmgym.data.splits import Split, check_split, read_split
from llmgym.data.tasks import TaskList, from_list
from llmgym.env import SingleTurnEnv
from llmgym.envs.problems import TEST, TRAIN
from llmgym.errors import RewardError, TaskSourceError
from llmgym.messages import Sample, Score, Task
from llmgym.rewards.base import Reward
from llmgym.rewards.calculator import annotations, consistency, grounded
from llmgym.rewards.rules import last_number, number

WEIGHTS: Mapping[str, float] = {
    "answer": 0.5,
    "consistency": 0.2,
    "grounded": 0.2,
    "format": 0.1,
}
MARK = "####"


@final
@dataclass(frozen=True, kw_only=True)
class WorkedSolution(Reward):
    """Judges a worked solution by four named parts, each in [0, 1]; its value is their sum.

    - `answer`: the number after the last `####`, or the last number of all where there is no such
      mark, is the reference's.
    - `consistency`: calculator annotations that are right / max(written, in the reference), each
      different one counted once; none written counts 0. See `rewards/calculator.py`.
    - `grounded`: those that calculate with numbers of the problem or of earlier results, counted
      in the same way.
    - `format`: the one `####` of the response opens its last line, and a number follows.

    A fifth part, `annotations`, is the number of different ones written. It has no weight: it is
    there to be watched, since a rising consistency means little while it falls.
    """

    weights: Mapping[str, float]
    name: str = "worked_solution"

    @property
    def bounds(self) -> tuple[float, float]:
        """Nothing, and the sum of the weights."""
        return 0.0, fsum(self.weights.values())

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Judge each response."""
        return [self._judged(sample) for sample in samples]

    def _judged(self, sample: Sample) -> Score:
        text, solution = str(sample.text), sample.task.solution or ""
        problem = "\n".join(message.content for message in sample.messages)
        parts = {
            "answer": float(final_number(text) == number(str(sample.task.answer))),
            "consistency": consistency(text, solution),
            "grounded": grounded(text, problem, solution),
            "format": float(is_marked(text)),
        }
        value = fsum(self.weights[name] * part for name, part in parts.items())
        return Score(value, parts | {"annotations": float(len(set(annotations(text))))})


def final_number(text: str) -> object:
    """Return the number a solution arrives at: after the last `####`, or else the last one."""
    _, mark, after = text.rpartition(MARK)
    return number(after.strip().partition("\n")[0]) if mark else last_number(text)


def is_marked(text: str) -> bool:
    """Return whether the last line, and only that one, is `#### number`."""
    last = text.strip().rpartition("\n")[2]
    end = last.removeprefix(MARK)
    return text.count(MARK) == 1 and end != last and number(end) is not None


def make(
    *,
    path: str | None = None,
    split: Split = "train",
    prompt_column: str = "question",
    solution_column: str = "answer",
    weights: Mapping[str, float] | None = None,
    last_assistant: LastAssistant = "raise",
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment; a reference solution earns the sum of the weights, junk 0.0.

    Args:
        path: a data file or a folder of them; None for the problems written here.
        split: "train", "test" or "all"; `llmgym/data/splits.py` says which rows that is.
        prompt_column: the column of questions.
        solution_column: the column of worked solutions.
        weights: of the parts `answer`, `consistency`, `grounded` and `format`, 0 or more; a part
            that is left out weighs 0. None for 0.5, 0.2, 0.2 and 0.1.
        last_assistant: what questions are that are messages and end with the assistant: an error
            ("raise"), a question and its answer ("split"), or one whose response has begun
            ("prefill").
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the one above.

    Raises:
        TaskSourceError: the file cannot be read, or a solution has no number after `####`.
        RewardError: a weight is negative or belongs to no part.
    """
    if path is None:
        tasks = embedded(split)
    else:
        columns = Columns(
            prompt=prompt_column, solution=solution_column, last_assistant=last_assistant
        )
        tasks = with_answers(read_split(path, split, columns))
    weights = _checked(WEIGHTS if weights is None else weights)
    reward = kwargs.pop("reward", None) or WorkedSolution(weights=weights)
    return SingleTurnEnv(tasks, reward, **kwargs)


@lru_cache(maxsize=3)
def embedded(split: Split) -> TaskList:
    """Return the problems written here, of one split or of both."""
    check_split(split)
    rows = {"train": TRAIN, "test": TEST, "all": TRAIN + TEST}[split]
    columns = Columns(prompt="question", solution="answer")
    return with_answers(from_list(rows, columns, source="llmgym/GSM8K-v0"))


@lru_cache(maxsize=16)
def with_answers(tasks: TaskList) -> TaskList:
    """Take each task's answer, the text after `####`, out of its solution.

    Raises:
        TaskSourceError: a solution has no number there; names the task.
    """
    return TaskList(tuple(_with_answer(task) for task in tasks.tasks))


def _with_answer(task: Task) -> Task:
    after = (task.solution or "").rpartition(MARK)
    if not after[1] or number(after[2]) is None:
        raise TaskSourceError(
            f"{task.place or task.id}: the solution must end in a line such as `#### 24`, and "
            f"ends in {after[2][-40:]!r}.\nFor prompts without one, use llmgym/Prompts-v0."
        )
    return replace(task, answer=after[2].strip().replace(",", ""))


def _checked(weights: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(set(weights) - set(WEIGHTS))
    if unknown:
        raise RewardError(f"no part is named {unknown[0]}; there are {', '.join(WEIGHTS)}")
    if min(weights.values(), default=0.0) < 0 or sum(weights.values()) <= 0:
        raise RewardError(f"weights must be 0 or more, and not all 0; got {dict(weights)}")
    return {name: float(weights.get(name, 0.0)) for name in WEIGHTS}
