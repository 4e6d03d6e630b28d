"""A plain function as a reward: what it is given, and what its results mean, by its dialect.

`dialects.py` says which dialect a function is of. `None` abstains in every dialect, async functions
are awaited, and a batch dialect is called once for a batch.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from llmgym.content import cell_of, has_column
from llmgym.errors import RewardError
from llmgym.messages import Message, Sample, Score
from llmgym.rewards.awaiting import awaited
from llmgym.rewards.base import Reward, name_of
from llmgym.rewards.dialects import FORMS, Dialect, is_open_ended, named_parameters, understood
from llmgym.rewards.rules import expected_answer
from llmgym.rewards.verdict import Verdict, called, shown


@final
@dataclass(frozen=True)
class FunctionReward(Reward):
    """A plain function as a reward: see `from_function`."""

    fn: Callable[..., Any]
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dialect: Dialect = "llmgym"

    @property
    def takes_batches(self) -> bool:
        """Whether a batch is better scored in one call: a batch dialect, or calls to await."""
        return FORMS[self.dialect].is_batch or _is_async(self.fn)

    def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Call the function once for every sample, or once for all where its dialect is a batch."""
        if FORMS[self.dialect].is_batch:
            arguments = ARGUMENTS[self.dialect](samples)
            returned = awaited([self._call(arguments, samples[0])])[0] if samples else []
            if isinstance(returned, Score):  # the one call that was awaited raised
                return [returned] * len(samples)
            results = _per_sample(self, returned, samples)
        else:
            give = ARGUMENTS[self.dialect]
            results = awaited([self._call(give([sample]), sample) for sample in samples])
        return [
            self._verdict(result, sample) for result, sample in zip(results, samples, strict=True)
        ]

    def _call(self, known: Mapping[str, Any], sample: Sample) -> Any:  # noqa: ANN401 - a user's
        known = {**known, **self.kwargs}
        parameters = named_parameters(self.fn)
        missing = [
            name for name, is_needed in parameters.items() if is_needed and name not in known
        ]
        if missing:
            raise RewardError(
                f"{called(self)}() needs {', '.join(missing)}, which the rows of "
                f"{sample.task.source or 'the task'} do not have. "
                f"It is called by name with: {', '.join(sorted(known))}.\n"
                "Rename the parameter, give it a default, or set it in the reward's kwargs."
            )
        if is_open_ended(self.fn):
            return self.fn(**known)
        return self.fn(**{name: known[name] for name in parameters if name in known})

    def _verdict(self, result: Any, sample: Sample) -> Verdict:  # noqa: ANN401 - a user's result
        if result is None:
            why = f"{called(self)}() returned None, which abstains"
            return Score(0.0, status="abstain", error=why)
        if self.dialect == "verl" and isinstance(result, Mapping):
            return _verl_score(self, result, sample)
        return result


def from_function(
    fn: Callable[..., Any],
    name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dialect: str = "auto",
) -> Reward:
    """Make a reward of a plain function, of the house or written for another trainer.

    A function `score(prompt, response, **columns)` is called by keyword with what its signature
    names: `prompt` (text, or a list of message dicts), `response` (text), `answer` (the same that
    `exact` compares with: see `rules.expected_answer`), any other column of the task's row, and
    `kwargs`. With `**columns` it gets all of them. It returns a number, or a dict of named parts,
    which is worth the sum of its parts; None abstains. The other dialects are in `dialects.py`.

    Args:
        fn: the function; an async one is awaited.
        name: how metrics call it; None for its own name.
        kwargs: arguments that every call is given.
        dialect: "auto" to tell it by the signature, or a name of `dialects.FORMS`.

    Raises:
        RewardError: its signature is of no dialect or of several, or it does not take what
            `kwargs` set (here), or a column it needs is missing (when it scores); names the
            parameters.
    """
    kwargs = dict(kwargs or {})
    reward = FunctionReward(
        fn, name or name_of(fn), kwargs, understood(fn, dialect, kwargs).dialect
    )
    parameters = named_parameters(fn)
    unknown = [key for key in kwargs if not (is_open_ended(fn) or key in parameters)]
    if unknown:
        raise RewardError(
            f"{reward.name}() has no parameter {unknown[0]}, which the reward's kwargs set. It has "
            f"{', '.join(parameters)}."
        )
    return reward


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn)


def _prompt(sample: Sample) -> Any:  # noqa: ANN401 - text, or a list of message dicts
    prompt = sample.task.prompt
    return prompt if isinstance(prompt, str) else [message.as_dict() for message in prompt]


def _columns(sample: Sample) -> dict[str, Any]:
    solution = sample.task.solution
    return {**({} if solution is None else {"solution": solution}), **sample.task.meta}


def _of_llmgym(samples: Sequence[Sample]) -> dict[str, Any]:
    sample = samples[0]
    answer, response = expected_answer(sample.task), str(sample.text)
    return _columns(sample) | {"answer": answer, "prompt": _prompt(sample), "response": response}


def _of_trl(samples: Sequence[Sample]) -> dict[str, Any]:
    rows = [_columns(sample) | {"answer": expected_answer(sample.task)} for sample in samples]
    names = dict.fromkeys(name for row in rows for name in row)
    known: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    known["prompts"] = [_prompt(sample) for sample in samples]
    known["completions"] = [
        str(sample.text) if isinstance(sample.task.prompt, str) else _spoken(sample)
        for sample in samples
    ]
    known["completion_ids"] = [[*sample.response.token_ids] for sample in samples]
    return known


def _of_verl(samples: Sequence[Sample]) -> dict[str, Any]:
    task, text = samples[0].task, str(samples[0].text)
    gold = "reward_model.ground_truth"
    return {
        "data_source": task.meta.get("data_source", task.source),
        "solution_str": text,
        "ground_truth": cell_of(task.meta, gold)
        if has_column(task.meta, gold)
        else expected_answer(task),
        "extra_info": dict(task.meta.get("extra_info") or {}),
    }


def _of_openrlhf(samples: Sequence[Sample]) -> dict[str, Any]:
    prompts = [_text(sample) for sample in samples]
    queries = [f"{prompt}{sample.text}" for prompt, sample in zip(prompts, samples, strict=True)]
    return {
        "queries": queries,
        "prompts": prompts,
        "labels": [_label(sample) for sample in samples],
    }


def _of_verifiers(samples: Sequence[Sample]) -> dict[str, Any]:
    sample = samples[0]
    task = sample.task
    known = {
        "prompt": [{"role": "user", "content": task.prompt}]
        if isinstance(task.prompt, str)
        else _prompt(sample),
        "completion": _spoken(sample),
        "answer": expected_answer(task),
        "info": task.meta.get("info") or {},
        "task": task.meta.get("task") or task.source,
    }
    return {**known, "state": {**known, "turn": sample.turn}}


ARGUMENTS: Mapping[Dialect, Callable[[Sequence[Sample]], dict[str, Any]]] = {
    "llmgym": _of_llmgym,
    "trl": _of_trl,
    "verl": _of_verl,
    "openrlhf": _of_openrlhf,
    "verifiers": _of_verifiers,
}
"""What each dialect hands over by name; of one sample where it is no batch dialect."""


def _spoken(sample: Sample) -> list[dict[str, Any]]:
    return [Message("assistant", str(sample.text)).as_dict()]


def _text(sample: Sample) -> str:
    prompt = sample.task.prompt
    return (
        prompt if isinstance(prompt, str) else "".join(f"{message.content}\n" for message in prompt)
    )


def _label(sample: Sample) -> Any:  # noqa: ANN401 - any column's value
    answer = expected_answer(sample.task)
    return sample.task.meta.get("label") if answer is None else answer


def _per_sample(reward: FunctionReward, returned: Any, samples: Sequence[Sample]) -> list[Any]:  # noqa: ANN401
    """Return the results of one call for a batch as one for each sample."""
    if reward.dialect == "openrlhf" and isinstance(returned, Mapping):
        return _openrlhf_scores(reward, returned, samples)
    return _listed(reward, returned, len(samples), "values")


def _listed(reward: FunctionReward, returned: Any, count: int, what: str) -> list[Any]:  # noqa: ANN401
    is_list = isinstance(returned, Sequence) and not isinstance(returned, str)
    if not is_list and (
        isinstance(returned, Mapping) or returned is None or np.ndim(returned) != 1
    ):
        raise RewardError(
            f"{called(reward)}() returned {shown(returned)} for {count} samples. The dialect "
            f"{reward.dialect} calls it once for a batch: return a list with one number for each."
        )
    values = [*returned]
    if len(values) != count:
        raise RewardError(
            f"{called(reward)}() returned {len(values)} {what} for {count} samples. The dialect "
            f"{reward.dialect} calls it once for a batch: return one number for each, None where "
            "it does not apply."
        )
    return values


def _openrlhf_scores(
    reward: FunctionReward, returned: Mapping[str, Any], samples: Sequence[Sample]
) -> list[Score]:
    """Return the scores that a dict of rewards, scores and extra_logs is."""
    if "rewards" not in returned:
        names = ", ".join(map(str, returned)) or "nothing"
        raise RewardError(
            f"{called(reward)}() returned a dict with {names}, and no "
            '"rewards".\nReturn {"rewards": [...], "scores": [...], "extra_logs": {...}}.'
        )
    count = len(samples)
    values = _listed(reward, returned["rewards"], count, "rewards")
    logs = {**(returned.get("extra_logs") or {})}
    if returned.get("scores") is not None:
        logs = {"scores": returned["scores"], **logs}
    parts = {
        str(name): [log] * count if np.ndim(log) == 0 else _listed(reward, log, count, str(name))
        for name, log in logs.items()
    }
    return [
        Score(value, {name: column[i] for name, column in parts.items()})
        for i, value in enumerate(values)
    ]


def _verl_score(reward: FunctionReward, result: Mapping[str, Any], sample: Sample) -> Score:
    """Return the score of a dict: its `score`; the other numbers are logged apart."""
    if "score" not in result:
        names = ", ".join(map(str, result)) or "nothing"
        where = sample.task.place or f"task {sample.task.id}"
        raise RewardError(
            f'{called(reward)}() returned a dict with {names}, and no "score", on {where}.\n'
            'Return a number, or {"score": ..., ...}.'
        )
    figures = int | float | np.integer | np.floating | np.bool_
    parts = {
        str(name): float(value)
        for name, value in result.items()
        if name != "score" and isinstance(value, figures)
    }
    return Score(result["score"], parts)
