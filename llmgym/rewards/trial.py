"""A reward tried on a few rows before a model is: values, parts, time, failures, and what is odd.

Every row is answered with its solution, where it has one, and with what models write in their worst
moments. Nothing is trained, and nothing here changes how a reward is called.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from llmgym.addresses import load
from llmgym.episodes import JUNK, unwarned
from llmgym.errors import LLMGymError, RewardError
from llmgym.messages import Completion, Message, Sample, Score, Task
from llmgym.plural import counted
from llmgym.rewards.base import REWARDS, Reward, score_samples
from llmgym.rewards.isolate import LATE
from llmgym.rewards.rounding import told_apart, tolerance
from llmgym.rewards.verdict import UNCUT, cut, place_of, quoted

GOLD = "solution"
WORST = {
    "prose": JUNK["prose"],
    "empty": "",
    "long": JUNK["100,000 characters"],
    "unicode": JUNK["Unicode"],
}
"""What every row is answered with, by the name it is shown with."""
SLOW_MS = 100.0
ENOUGH = 5
"""After so many failures in a row no more are asked for."""
RAISED = re.compile(r"(\w+): .*( at .+:\d+)", re.DOTALL)


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
        return [
            answer for answer in self.answers if answer.kind == kind and answer.score.status == "ok"
        ]


def written_at(spec: Mapping[str, Any]) -> str:
    """Return FILE:LINE of what a specification names; empty where it has none."""
    address = spec.get("function") or REWARDS.get(str(spec.get("name")), "")
    return place_of(load(address)) if address else ""


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
    with unwarned():
        for row, kind, sample in samples:
            began = time.perf_counter()
            try:
                score = score_samples(reward, [sample], retries=0)[0]
            except LLMGymError as error:
                broken = f"{error}\nIt was row {row}, response {kind} {quoted(sample.text)}."
                return Trial(answers=(*answers,), errors=(broken,), warnings=())
            ms = 1000 * (time.perf_counter() - began)
            answers.append(
                Answer(
                    row=row,
                    kind=kind,
                    prompt=_text_of(sample.task),
                    response=sample.text,
                    score=score,
                    ms=ms,
                )
            )
            if _is_hopeless(answers):
                break
        every = [sample for *_, sample in samples]
        errors = [*_failures(answers, reward, place), *_differences(reward, every, answers)]
        errors += _abstentions(answers)
        if len(answers) < len(samples):
            left = f"{len(samples) - len(answers)} of {len(samples)} responses were not tried"
            errors.append(f"{left}: each may fail alike, or take as long.")
    return Trial(answers=(*answers,), errors=(*errors,), warnings=(*_oddities(answers),))


def _responses(task: Task) -> dict[str, str]:
    gold = task.solution if task.solution is not None else task.answer
    return WORST if gold is None else {GOLD: str(gold), **WORST}


def _sample(task: Task, response: str) -> Sample:
    prompt = task.prompt
    messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    return Sample(task=task, messages=messages, response=Completion(response), text=response)


def _text_of(task: Task) -> str:
    prompt = task.prompt
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)


def _is_hopeless(answers: Sequence[Answer]) -> bool:
    """Return whether to stop: one call was late, and each may be; or the last few all failed."""
    errors = [answer.score.error or "" for answer in answers if answer.score.status == "error"]
    ends = [answer.score.status for answer in answers[-ENOUGH:]]
    return any(LATE in error for error in errors) or ends == ["error"] * ENOUGH


def _written(reward: Reward, place: str) -> str:
    return f"; {reward.name}() is written at {place}" if place else ""


def _failures(answers: Sequence[Answer], reward: Reward, place: str) -> Iterator[str]:
    failed: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.score.status == "error" and not _is_beyond(answer):
            failed.setdefault(_bug(str(answer.score.error)), []).append(answer)
    for those in failed.values():
        first, rows = those[0], len({answer.row for answer in those})
        error = str(first.score.error)
        at = "" if " at " in error else _written(reward, place)
        yield (
            f"{len(those)} of {len(answers)} calls failed, on {counted(rows, 'row')}, first "
            f"on row {first.row}, response {first.kind} {quoted(first.response)}: "
            f"{cut(error, 300)}{at}. A failed reward is never 0: the sample is left out, and too "
            "many stop the run."
        )


def _abstentions(answers: Sequence[Answer]) -> Iterator[str]:
    silent = [answer for answer in answers if answer.score.status == "abstain"]
    if silent and len(silent) == len(answers):
        yield (
            f"it abstains from all {len(answers)} responses: {silent[0].score.error}. A run would "
            "have nothing to learn from. Return a number where it applies."
        )


def _is_beyond(answer: Answer) -> bool:
    """Tell whether a response is only longer than what a reward model reads: training has none."""
    return answer.kind == "long" and UNCUT in (answer.score.error or "")


def _bug(error: str) -> str:
    """Return what errors of one cause share: type and line of an exception, else the last words."""
    return RAISED.sub(r"\1\2", error) if RAISED.fullmatch(error) else error.rpartition(", ")[2]


def _differences(
    reward: Reward, samples: Sequence[Sample], answers: Sequence[Answer]
) -> Iterator[str]:
    ok = [i for i, answer in enumerate(answers) if answer.score.status == "ok"]
    order = [ok[i] for i in np.random.default_rng(0).permutation(len(ok))]
    laws = {
        "Two calls on": (ok, "A reward is a function of its sample: draw nothing at random"),
        "One call, and a batch of all, on": (
            order,
            "A sample's score must not depend on the others: keep no state between them",
        ),
    }
    within = tolerance((answers[i].score.value for i in ok), reward)
    for law, (rows, remedy) in laws.items():
        if law.startswith("Two"):
            scores = [score_samples(reward, [samples[i]], retries=0)[0] for i in rows]
        else:
            scores = score_samples(reward, [samples[i] for i in rows], retries=0)
        for i, score in zip(rows, scores, strict=True):
            first, is_ok = answers[i].score.value, score.status == "ok"
            if not (is_ok and abs(first - score.value) <= within):
                told, then = told_apart(first, score.value)
                then = then if is_ok else f"then {score.error or score.status}"
                yield (
                    f"{law} row {answers[i].row}, response {answers[i].kind}, gave {told} and "
                    f"{then}. {remedy}."
                )
                return


def _oddities(answers: Sequence[Answer]) -> Iterator[str]:
    if beyond := [answer for answer in answers if _is_beyond(answer)]:
        yield f"response long is more than a text may have: {cut(str(beyond[0].score.error), 300)}"
    fine = [answer for answer in answers if answer.score.status == "ok"]
    if not fine:
        return
    if silent := [answer for answer in answers if answer.score.status == "abstain"]:
        first = silent[0]
        yield (
            f"it abstains from {len(silent)} of {len(answers)} responses, first from row "
            f"{first.row}, response {first.kind} {quoted(first.response)}: {first.score.error}. "
            "Such samples are left out."
        )
    values = {answer.score.value for answer in fine}
    if max(values) - min(values) <= tolerance(values):
        yield (
            f"every response earns {fine[0].score.value:.4g}, so there is nothing to learn from. "
            "If it compares with a column, name it: --data FILE --answer-column NAME; if it wants "
            "a form, give solutions in that form: --solution-column NAME"
        )
    gold = {answer.row: answer.score.value for answer in fine if answer.kind == GOLD}
    beaten = [
        answer
        for answer in fine
        if answer.kind != GOLD and answer.score.value > gold.get(answer.row, 1e300)
    ]
    if beaten:
        first = beaten[0]
        yield (
            f"{first.kind} {quoted(first.response)} earns {first.score.value:.4g} on row "
            f"{first.row}, its solution {gold[first.row]:.4g}: a policy learns what pays most."
        )
    slow = fmean(answer.ms for answer in answers)
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
