"""How a function asks to be called: the dialects of reward functions, known by their signatures.

| dialect   | asks for                | may ask for                           | one call is for |
| --------- | ----------------------- | ------------------------------------- | --------------- |
| llmgym    | response                | prompt, answer, any column            | a sample        |
| trl       | completions             | prompts, completion_ids, any column   | a batch         |
| verl      | solution_str            | data_source, ground_truth, extra_info | a sample        |
| openrlhf  | queries                 | prompts, labels                       | a batch         |
| verifiers | completion, or state    | prompt, answer, info, task            | a sample        |

A function is of a dialect where it asks for what only that dialect has, and the dialect has all
that it needs. Nothing here calls a function.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from llmgym.errors import RewardError

Dialect = Literal["llmgym", "trl", "verl", "openrlhf", "verifiers"]
DialectSetting = Literal["auto", "llmgym", "trl", "verl", "openrlhf", "verifiers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a dialect hands to a function.

    Attributes:
        marks: the parameters that no other dialect has; a function takes one of them.
        others: the rest of what it hands over by name.
        has_columns: whether a parameter may also be a column of the row.
        is_batch: whether one call is for a batch, and returns a list.
        usual: the signature, for messages.
    """

    marks: tuple[str, ...]
    others: tuple[str, ...]
    has_columns: bool = False
    is_batch: bool = False
    usual: str


FORMS: dict[Dialect, Form] = {
    "llmgym": Form(
        marks=("response",),
        others=("prompt", "answer"),
        has_columns=True,
        usual="prompt, response, **columns",
    ),
    "trl": Form(
        marks=("completions",),
        others=("prompts", "completion_ids"),
        has_columns=True,
        is_batch=True,
        usual="prompts, completions, **columns",
    ),
    "verl": Form(
        marks=("solution_str",),
        others=("data_source", "ground_truth", "extra_info"),
        usual="data_source, solution_str, ground_truth, extra_info=None",
    ),
    "openrlhf": Form(
        marks=("queries",),
        others=("prompts", "labels"),
        is_batch=True,
        usual="queries, prompts, labels",
    ),
    "verifiers": Form(
        marks=("completion", "state"),
        others=("prompt", "answer", "info", "task"),
        usual="completion, answer, prompt, state, info",
    ),
}

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """What a function was taken for.

    Attributes:
        dialect: how it is called.
        reason: what shows that, a sentence without its end.
    """

    dialect: Dialect
    reason: str


def is_open_ended(fn: Callable[..., Any]) -> bool:
    """Return whether a function takes any argument by name."""
    return inspect.Parameter.VAR_KEYWORD in _kinds(fn)


def named_parameters(fn: Callable[..., Any]) -> dict[str, bool]:
    """Return the parameters that can be given by name, and whether a call must give them."""
    return {
        parameter.name: parameter.default is parameter.empty
        for parameter in inspect.signature(fn).parameters.values()
        if parameter.kind in NAMED
    }


def understood(
    fn: Callable[..., Any], setting: str = "auto", kwargs: Mapping[str, Any] | None = None
) -> Understood:
    """Return the dialect of a function and why.

    Args:
        fn: the function.
        setting: "auto", or the dialect that was set.
        kwargs: arguments that every call is given.

    Raises:
        RewardError: the setting is none, the signature fits no dialect or several, or a dialect
            that was set does not have what the function needs.
    """
    if setting not in get_args(DialectSetting):
        known = ", ".join(get_args(DialectSetting))
        raise RewardError(f'the dialect of a reward is one of {known}; got "{setting}"')
    parameters, fixed = named_parameters(fn), frozenset(kwargs or {})
    for dialect, form in FORMS.items():
        if dialect == setting:
            _check(fn, dialect, form, fixed)
            return Understood(dialect=dialect, reason="it is set")
    fitting: list[Dialect] = [
        dialect
        for dialect, form in FORMS.items()
        if _marks(parameters, form, fixed) and not _lacking(parameters, form, fixed)
        if all(kind is not inspect.Parameter.POSITIONAL_ONLY for kind in _kinds(fn))
    ]
    if not fitting and not parameters and is_open_ended(fn):
        return Understood(dialect="llmgym", reason="it takes every column by name")
    if len(fitting) == 1:
        marks = _marks(parameters, FORMS[fitting[0]], fixed)
        return Understood(dialect=fitting[0], reason=f"it takes {' and '.join(marks)}")
    raise RewardError(_unclear(fn, fitting, fixed))


def _kinds(fn: Callable[..., Any]) -> list[Any]:
    return [parameter.kind for parameter in inspect.signature(fn).parameters.values()]


def _marks(parameters: Collection[str], form: Form, fixed: Collection[str]) -> list[str]:
    return [name for name in form.marks if name in parameters and name not in fixed]


def _lacking(parameters: Mapping[str, bool], form: Form, fixed: Collection[str]) -> list[str]:
    """Return the parameters that a call must give, and the dialect does not have."""
    if form.has_columns:
        return []
    has = {*form.marks, *form.others, *fixed}
    return [name for name, is_needed in parameters.items() if is_needed and name not in has]


def _check(fn: Callable[..., Any], dialect: Dialect, form: Form, fixed: Collection[str]) -> None:
    """Refuse a function that the dialect set for it cannot call."""
    parameters = named_parameters(fn)
    if _marks(parameters, form, fixed) or is_open_ended(fn):
        lacking = _lacking(parameters, form, fixed)
        if not lacking:
            return
        problem = f"needs {', '.join(lacking)}, which the dialect {dialect} does not have"
    else:
        problem = f"takes no {' and no '.join(form.marks)}"
    raise RewardError(
        f"{_called(fn)} {problem}. The dialect {dialect} calls {_name(fn)}({form.usual}).\n"
        "Rename the parameter, give it a default, set it in the reward's kwargs, or set another "
        "dialect."
    )


def _unclear(fn: Callable[..., Any], fitting: list[Dialect], fixed: Collection[str]) -> str:
    parameters = named_parameters(fn)
    if fitting:
        readings = "; ".join(
            f"{dialect} (it takes {' and '.join(_marks(parameters, FORMS[dialect], fixed))})"
            for dialect in fitting
        )
        return (
            f"{_called(fn)} could be of several dialects: {readings}.\n"
            f"Say which: --rewards.0.dialect {fitting[0]}, or dialect: {fitting[0]} in a file, or "
            f"llmgym rewards check --dialect {fitting[0]}"
        )
    forms = "\n".join(f"  {dialect}: ({form.usual})" for dialect, form in FORMS.items())
    return (
        f"{_called(fn)} is called by name and must take response, or what another dialect hands "
        f"over.\nWrite it as one of\n{forms}"
    )


def _called(fn: Callable[..., Any]) -> str:
    return f"{_name(fn)}({', '.join(inspect.signature(fn).parameters)})"


def _name(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))
