"""Makes a `Score` of what a reward returned; and how messages name reward and sample.

A number is Python's or numpy's, a bool, or a tensor without dimensions. A broken reward (text, an
empty dict, a list, a wrong count) raises `RewardError` with the line it is written at and the
response it was given; NaN and infinite become a `Score` of status "error".
What a model wrote is shown by its start only, and escaped: it may hold anything.
"""

import inspect
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, Protocol, SupportsFloat, get_args, runtime_checkable

import numpy as np

from llmgym.errors import RewardError
from llmgym.messages import Sample, Score, ScoreStatus, Task

Verdict = float | Mapping[str, float] | Score
"""What a scorer may say of one sample; a mapping of named parts is worth their sum."""

MOST = 40
"""Characters shown of a prompt or a response."""
MAX_MESSAGE_LENGTH = 200
"""Characters shown of what an exception says, which may quote all of a response."""

UNCUT = "they are never cut"
"""Within the error of a text that is longer than a reward model's context."""

_PLACES = (Path(os.__file__).parent, Path(np.__file__).parents[1], Path(__file__).parents[1])
LIBRARIES = (*(f"{place}{os.sep}" for place in _PLACES), "<")
"""How the paths begin of files that nobody mends who writes a reward: Python's, packages', ours."""

Wrong = Callable[[str, str], RewardError]


class Named(Protocol):
    """What messages need of a reward."""

    @property
    def name(self) -> str:
        """How it is called."""
        ...


@runtime_checkable
class Wrapping(Protocol):
    """A reward that calls a function; messages point at the function."""

    @property
    def fn(self) -> Callable[..., Any]:
        """The function."""
        ...


def coerce(verdict: object, reward: Named, sample: Sample) -> Score:
    """Return a verdict as a `Score`, strictly; NaN and infinite become status "error".

    A verdict that abstains or failed is worth 0.0, whatever its value and spans are.

    Raises:
        RewardError: the verdict is no number, dict of numbers or `Score`, or of no known status.
    """
    wrong = partial(_broken, reward, sample)
    if isinstance(verdict, Score):
        score = _checked_score(verdict, reward.name, wrong)
    elif isinstance(verdict, Mapping):
        if not verdict:
            raise wrong("{}", "A dict names one part or more; an empty one is no score.")
        parts = _figures(verdict, wrong)
        score = Score(sum(parts.values()), parts)
    else:
        score = Score(_number(verdict, wrong))
    figures = (score.value, *score.parts.values(), *(figure for *_, figure in score.spans))
    if all(map(math.isfinite, figures)):
        return score
    told = ", ".join(f"{part} {value}" for part, value in score.parts.items()) or score.value
    return failed(f"{reward.name}() returned {told}, which is not finite")


def failed(why: str, retries: int = 0) -> Score:
    """Return the score of a sample whose reward failed."""
    return Score(0.0, status="error", error=why, retries=retries)


def checked(verdicts: object, reward: Named, samples: Sequence[Sample]) -> Sequence[object]:
    """Return what a call of `score` returned, where it is one verdict for each sample.

    Raises:
        RewardError: it is no list, or one of another length.
    """
    if isinstance(verdicts, np.ndarray) and verdicts.ndim == 1:
        verdicts = list(verdicts)  # keeps numpy's types, so that bools are still told apart
    first = f"the first {about(samples[0])}" if samples else "none"
    if not isinstance(verdicts, Sequence) or isinstance(verdicts, str):
        raise RewardError(
            f"{called(reward)}.score() returned {shown(verdicts)} for {len(samples)} samples, "
            f"{first}. Return a list with one number for each sample."
        )
    if len(verdicts) != len(samples):
        raise RewardError(
            f"{called(reward)}.score() returned {len(verdicts)} values for {len(samples)} samples, "
            f"{first}. Return one float, or one dict of floats, for each sample."
        )
    return verdicts


def describe(error: BaseException) -> str:
    """Return an exception in one line: its type, what it says, and the user's line it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    place = "".join(f" at {near(frame.filename)}:{frame.lineno}" for frame in (own or frames)[-1:])
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {cut(_plain(first), MAX_MESSAGE_LENGTH)}{place}"


def called(reward: Named) -> str:
    """Return what messages call a reward: FILE:LINE NAME, or its name alone."""
    place = place_of(reward.fn if isinstance(reward, Wrapping) else type(reward))
    return f"{place} {reward.name}".lstrip()


def place_of(what: Callable[..., Any]) -> str:
    """Return FILE:LINE where a function or class is written; empty where it has no source."""
    function = inspect.unwrap(what)
    try:
        return f"{near(str(inspect.getsourcefile(function)))}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):  # compiled, typed in, or an instance
        return ""


def near(file: str) -> str:
    """Return a path relative to the current folder, where it is inside."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (OSError, ValueError):  # the folder is gone, or the file lies elsewhere
        return file


def about(sample: Sample) -> str:
    """Return which sample it was: the starts of response and prompt, and the task's id."""
    prompt = _start(sample.task)
    place = f", {sample.task.place}" if sample.task.place else ""
    return f"for the response {quoted(sample.text)} to {prompt} (task {sample.task.id}{place})"


def row_of(task: Task) -> str:
    """Return which row of a file a task is: the start of its prompt, its place, the task's id."""
    place = task.place or task.source or "the environment"
    return f"the row {_start(task)} of {place} (task {task.id})"


def _start(task: Task) -> str:
    prompt = task.prompt
    return quoted(prompt if isinstance(prompt, str) else prompt[-1].content)


def quoted(text: str) -> str:
    """Return the start of a text in quotes, whatever is not printable escaped."""
    return repr(cut(text, MOST))


def cut(text: str, most: int) -> str:
    """Return a text, its end left out where it is long."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: object) -> str:
    """Return a value's type and its start, in one line."""
    text = cut(_plain(" ".join(repr(value).split())), 60)
    return text if value is None else f"{type(value).__name__} {text}"


def _plain(text: str) -> str:
    return "".join(
        character if character.isprintable() else "?"
        for character in text[: 2 * MAX_MESSAGE_LENGTH]
    )


def _broken(reward: Named, sample: Sample, got: str, remedy: str) -> RewardError:
    return RewardError(f"{called(reward)}() returned {got} {about(sample)}. {remedy}")


def _checked_score(score: Score, name: str, wrong: Wrong) -> Score:
    if score.status not in get_args(ScoreStatus):
        allowed = ", ".join(get_args(ScoreStatus))
        raise wrong(f"the status {score.status!r}", f"It must be one of {allowed}.")
    error = None if score.error is None else str(score.error)
    if score.status == "error":
        return failed(error or f"{name}() gave no reason", score.retries)
    parts = _figures(score.parts, wrong)
    if score.status == "abstain":
        return replace(score, value=0.0, parts=parts, spans=(), error=error)
    value, spans = _number(score.value, wrong), _spans(score.spans, wrong)
    return replace(score, value=value, parts=parts, spans=spans, error=error)


def _figures(parts: object, wrong: Wrong) -> dict[str, float]:
    if not isinstance(parts, Mapping):
        raise wrong(f"the parts {shown(parts)}", "Parts are a dict of numbers by name.")
    return {str(part): _number(value, wrong) for part, value in parts.items()}


def _spans(spans: Any, wrong: Wrong) -> tuple[tuple[int, int, float], ...]:  # noqa: ANN401
    try:
        return tuple(
            (index(start), index(end), _number(figure, wrong)) for start, end, figure in spans
        )
    except (TypeError, ValueError) as error:
        remedy = "A span is (start, end, reward): two characters' numbers and a figure."
        raise wrong(f"the spans {shown(spans)}", remedy) from error


def _number(value: object, wrong: Wrong) -> float:
    if isinstance(value, SupportsFloat) and not isinstance(value, str | np.complexfloating):
        number: Any = value
        if np.ndim(number) == 0:  # a tensor says its own
            return _float(number)
    raise wrong(
        shown(value),
        "Return a number or a dict of numbers; where it does not apply, "
        'llmgym.Score(0.0, status="abstain").',
    )


def _float(value: SupportsFloat) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond what a float holds
        return math.inf
