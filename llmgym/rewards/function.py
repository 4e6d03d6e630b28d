"""A plain function `score(prompt, response, **columns)` as a reward."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from llmgym.errors import RewardError
from llmgym.messages import Sample
from llmgym.rewards.base import Reward, name_of
from llmgym.rewards.rules import expected_answer
from llmgym.rewards.verdict import Verdict, called


@final
@dataclass(frozen=True)
class FunctionReward(Reward):
    """A plain `score(prompt, response, **columns)` as a reward: see `from_function`."""

    fn: Callable[..., Any]
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Call the function once for every sample, with the arguments that it names."""
        return [self.fn(**self._arguments(sample)) for sample in samples]

    def _arguments(self, sample: Sample) -> dict[str, Any]:
        task = sample.task
        prompt = task.prompt
        known = {
            **({} if task.solution is None else {"solution": task.solution}),
            **task.meta,
            "answer": expected_answer(task),
            "prompt": prompt
            if isinstance(prompt, str)
            else [message.as_dict() for message in prompt],
            "response": str(sample.text),
            **self.kwargs,
        }
        parameters = inspect.signature(self.fn).parameters.values()
        required = [
            parameter.name
            for parameter in parameters
            if parameter.default is parameter.empty and parameter.kind in NAMED
        ]
        missing = [name for name in required if name not in known]
        if missing:
            raise RewardError(
                f"{called(self)}() needs {', '.join(missing)}, which the rows of "
                f"{task.source or 'the task'} do not have. "
                f"It is called by name with: {', '.join(sorted(known))}.\n"
                "Rename the parameter, give it a default, or set it in the reward's kwargs."
            )
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return known
        return {
            parameter.name: known[parameter.name]
            for parameter in parameters
            if parameter.name in known
        }


NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def from_function(
    fn: Callable[..., Any], name: str | None = None, kwargs: Mapping[str, Any] | None = None
) -> Reward:
    """Make a reward of a plain function `score(prompt, response, **columns)`.

    The function is called by keyword with what its signature names: `prompt` (text, or a list of
    message dicts), `response` (text), `answer` (the same that `exact` compares with: see
    `rules.expected_answer`), any other column of the task's row, and `kwargs`. With `**columns` it
    gets all of them. It returns a number, or a dict of named parts, which is worth the sum of its
    parts. This is the only place that looks at the names of parameters.

    Raises:
        RewardError: the function is async, takes no `response` or not what `kwargs` set (here), or
            a column it needs is missing (when it scores); names the parameters.
    """
    reward = FunctionReward(fn, name or name_of(fn), dict(kwargs or {}))
    if inspect.iscoroutinefunction(fn):
        raise RewardError(
            f"{reward.name}() is async, and nothing awaits it.\n"
            "Write a plain function that calls asyncio.run, or a Reward that scores whole batches."
        )
    parameters = inspect.signature(fn).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    positional = [
        parameter.name
        for parameter in parameters.values()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    if positional or not (open_ended or "response" in parameters):
        raise RewardError(
            f"{reward.name}() is called by name and must take response, got "
            f"({', '.join(parameters)}).\nWrite it as {reward.name}(prompt, response, **columns)."
        )
    unknown = [name for name in reward.kwargs if not (open_ended or name in parameters)]
    if unknown:
        raise RewardError(
            f"{reward.name}() has no parameter {unknown[0]}, which the reward's kwargs set. It has "
            f"{', '.join(parameters)}."
        )
    return reward
