"""A reward tried on a few rows before a model is: values, parts, time, failures, and what is odd.

Every row is answered with its solution, where it has one, and with what models write in their worst
moments. Nothing is trained, and nothing here changes how a reward is called.
"""

import inspect
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from llmgym.check import JUNK
from llmgym.errors import LLMGymError, RewardError
from llmgym.messages import Completion, Message, Sample, Score, Task
from llmgym.registry import load
from llmgym.rewards.base import REWARDS, Reward, score_samples

GOLD = "solution"
WORST = {
    "prose": JUNK["prose"],
    "empty": "",
    "long": JUNK["100,000 characters"],
    "unicode": JUNK["Unicode"],
}
"""What every row is answered with, by the name it is shown with."""
TOLERANCE = 1e-6
SLOW_MS = 100.0
ENOUGH = 5
"""After so many failures in a row no more are asked for: each may take its whole time limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response to one row, and what it earned.

    Attributes:
        row: number of the row, from 1.
        kind: "solution" or a name of `WORST`.
        score: as a batch of one.
        ms: milliseconds that took.
    """

    row: int
    kind: str
    prompt: str
    response: str
    score: Score
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came out.

    Attributes:
        answers: every response that was scored.
        errors: what stops a run, one line each.
        warnings: what makes a run learn nothing, or slowly.
    """

    answers: tuple[Answer, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def of(self, kind: str) -> list[Answer]:
        """Return the answers of a kind that did not fail."""
        return [one for one in self.answers if one.kind == kind and one.score.status == "ok"]


def place_of(spec: Mapping[str, Any]) -> str:
    """Return FILE:LINE of what a specification names; empty where it has none."""
    address = spec.get("function") or REWARDS.get(str(spec.get("name")), "")
    if not address:
        return ""
    named = inspect.unwrap(load(address))
    try:
        return f"{inspect.getsourcefile(named)}:{inspect.getsourcelines(named)[1]}"
    except (OSError, TypeError):  # an object without source: compiled, or an instance
        return ""


def tried(reward: Reward, tasks: Sequence[Task], place: str = "") -> Trial:
    """Score each task's responses one by one, again, and as one batch in another order.

    Args:
        reward: what is tried.
        tasks: the rows.
        place: FILE:LINE where the reward is written, for the messages.
    """
    samples = [
        (row, kind, _sample(task, response))
        for row, task in enumerate(tasks, start=1)
        for kind, response in _responses(task).items()
    ]
    answers: list[Answer] = []
    with _silent():
        for row, kind, sample in samples:
            began = time.perf_counter()
            try:
                score = score_samples(reward, [sample], retries=0)[0]
            except LLMGymError as error:
                where = f"row {row}, response {kind} {_short(sample.text)}"
                said = str(error).replace(" for row 0", "")  # of a batch of one
                broken = f"{said}\nIt was {where}{_written(reward, place)}."
                return Trial(answers=(*answers,), errors=(broken,), warnings=())
            ms = 1000 * (time.perf_counter() - began)
            answers.append(
                Answer(
                    row=row,
                    kind=kind,
                    prompt=_said(sample.task),
                    response=sample.text,
                    score=score,
                    ms=ms,
                )
            )
            if len(answers) >= ENOUGH and all(
                one.score.status == "error" for one in answers[-ENOUGH:]
            ):
                break
        every = [sample for *_, sample in samples]
        errors = [*_failures(answers, reward, place), *_differences(reward, every, answers)]
    return Trial(answers=(*answers,), errors=(*errors,), warnings=(*_oddities(answers),))


def _responses(task: Task) -> dict[str, str]:
    gold = task.solution if task.solution is not None else task.answer
    return WORST if gold is None else {GOLD: str(gold), **WORST}


def _sample(task: Task, response: str) -> Sample:
    prompt = task.prompt
    messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    return Sample(task=task, messages=messages, response=Completion(response), text=response)


def _said(task: Task) -> str:
    prompt = task.prompt
    return prompt if isinstance(prompt, str) else "\n".join(one.content for one in prompt)


def _short(text: str) -> str:
    return repr(_cut(text, 40))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _written(reward: Reward, place: str) -> str:
    return f"; {reward.name}() is written at {place}" if place else ""


@contextmanager
def _silent() -> Iterator[None]:
    # What fails is shown below, once; the warnings of a run would say it again for each call.
    logger = logging.getLogger("llmgym.rewards")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _failures(answers: Sequence[Answer], reward: Reward, place: str) -> Iterator[str]:
    failed: dict[str, list[Answer]] = {}
    for one in answers:
        if one.score.status == "error":
            failed.setdefault(str(one.score.error), []).append(one)
    for error, those in failed.items():
        first = those[0]
        at = "" if " at " in error else _written(reward, place)
        yield (
            f"{len(those)} of {len(answers)} calls failed, first on row {first.row}, response "
            f"{first.kind} {_short(first.response)}: {_cut(error, 300)}{at}. A failed reward is "
            "never 0: the sample is left out, and too many stop the run."
        )


def _differences(
    reward: Reward, samples: Sequence[Sample], answers: Sequence[Answer]
) -> Iterator[str]:
    ok = [i for i, one in enumerate(answers) if one.score.status == "ok"]
    order = [ok[i] for i in np.random.default_rng(0).permutation(len(ok))]
    laws = {
        "Two calls on": (ok, "A reward is a function of its sample: draw nothing at random"),
        "One call, and a batch of all, on": (
            order,
            "A sample's score must not depend on the others: keep no state between them",
        ),
    }
    for law, (rows, remedy) in laws.items():
        if law.startswith("Two"):
            scores = [score_samples(reward, [samples[i]], retries=0)[0] for i in rows]
        else:
            scores = score_samples(reward, [samples[i] for i in rows], retries=0)
        for i, score in zip(rows, scores, strict=True):
            first = answers[i].score.value
            if not abs(first - score.value) <= TOLERANCE:
                yield (
                    f"{law} row {answers[i].row}, response {answers[i].kind}, gave {first:.6g} and "
                    f"{score.value:.6g}. {remedy}."
                )
                return


def _oddities(answers: Sequence[Answer]) -> Iterator[str]:
    fine = [one for one in answers if one.score.status == "ok"]
    if not fine:
        return
    values = {one.score.value for one in fine}
    if max(values) - min(values) <= TOLERANCE:
        yield (
            f"every response earns {fine[0].score.value:.4g}, so there is nothing to learn from. "
            "If it compares with a column, name it: --data FILE --answer-column NAME; if it wants "
            "a form, give solutions in that form: --solution-column NAME"
        )
    gold = {one.row: one.score.value for one in fine if one.kind == GOLD}
    beaten = [
        one for one in fine if one.kind != GOLD and one.score.value > gold.get(one.row, 1e300)
    ]
    if beaten:
        first = beaten[0]
        yield (
            f"{first.kind} {_short(first.response)} earns {first.score.value:.4g} on row "
            f"{first.row}, its solution {gold[first.row]:.4g}: a policy learns what pays most."
        )
    slow = fmean(one.ms for one in answers)
    if slow > SLOW_MS:
        yield (
            f"a call takes {slow:.0f} ms, so 256 episodes take {0.256 * slow:.0f} s of an "
            "iteration. Score a batch at once, or cache."
        )


def spread(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the least, the mean, the most and the standard deviation.

    Raises:
        RewardError: there are none.
    """
    if not values:
        raise RewardError("no response was scored, so there is no spread to show.")
    return min(values), fmean(values), max(values), pstdev(values)
