"""What a reward is, how one is named, and what happens when it fails.

A `Reward` scores a batch of samples in one call. `score_samples` is the error policy, the only way
an environment calls one: a broken function (None, a wrong length or type) raises `RewardError` at
once; a failed sample (an exception, NaN, inf) is a `Score` of status "error", never a 0.0.
"""

import inspect
import json
import logging
import math
import os
import shlex
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Protocol, final, runtime_checkable

from llmgym import registry
from llmgym.errors import LLMGymError, PluginError, RewardError, RewardNotFound
from llmgym.messages import Sample, Score
from llmgym.rewards.verdict import Verdict, checked, coerce, describe, failed, shown

logger = logging.getLogger("llmgym.rewards")


@runtime_checkable
class Reward(Protocol):
    """Scores samples. Derive from it: the defaults below then hold.

    Attributes:
        name: how metrics and messages call it.
        per_turn: True to be asked after every turn, False after the last one only.
        collective: True to be called on every rank at every step, even with no samples.
    """

    name: str
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> Sequence[Verdict]:
        """Return one verdict for each sample, in order, without changing anything."""
        ...


@final
@dataclass(frozen=True)
class PerSample(Reward):
    """The reward that asks `fn` about one sample after the other."""

    fn: Callable[[Sample], Verdict]
    name: str = "reward"

    def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return `fn` of every sample."""
        return [self.fn(sample) for sample in samples]


def per_sample(fn: Callable[[Sample], Verdict], name: str | None = None) -> Reward:
    """Make a reward of a function of one sample."""
    return PerSample(fn, name or name_of(fn))


@runtime_checkable
class Bounded(Protocol):
    """A reward that knows the least and the most that it can say."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most."""
        ...


@runtime_checkable
class Batching(Protocol):
    """A reward that may ask for whole batches even where others score one sample at a time."""

    @property
    def takes_batches(self) -> bool:
        """Whether it does."""
        ...


class UnitReward(Reward, ABC):
    """A reward between 0.0 and 1.0."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)


def bounds_of(reward: Reward | None) -> tuple[float, float]:
    """Return the least and the most that a reward says it can say; else minus and plus infinity."""
    return reward.bounds if isinstance(reward, Bounded) else (-math.inf, math.inf)


def takes_batches(reward: Reward) -> bool:
    """Return whether one call for a batch is better than a call for each sample."""
    return isinstance(reward, Batching) and reward.takes_batches


def score_samples(reward: Reward, samples: Sequence[Sample], retries: int = 2) -> list[Score]:
    """Score samples under the error policy: one finite `Score` each, in order.

    A call that raises is repeated `retries` times, then made for each sample alone (a collective
    reward is only repeated whole). What still raises, or is NaN or infinite, has status "error".

    Raises:
        RewardError: the function is broken: it returned None, a wrong length or a wrong type.
    """
    if not samples and not reward.collective:
        return []
    verdicts, failure, repeated = _attempt(reward, samples, retries)
    if verdicts is None and len(samples) > 1 and not reward.collective:
        alone = [_attempt(reward, [sample], retries=0) for sample in samples]
        verdicts = [failed(why) if scores is None else scores[0] for scores, why, _ in alone]
        repeated += 1
    elif verdicts is None:
        verdicts = [failed(failure)] * len(samples)
    scores = [
        coerce(verdict, reward, sample) for verdict, sample in zip(verdicts, samples, strict=True)
    ]
    scores = [replace(score, retries=score.retries + repeated) for score in scores]
    errors = [score.error for score in scores if score.status == "error"]
    if errors:
        text = "%s() failed on %d of %d samples; first: %s"
        logger.warning(text, reward.name, len(errors), len(scores), errors[0])
    return scores


def _attempt(
    reward: Reward, samples: Sequence[Sample], retries: int
) -> tuple[Sequence[object] | None, str, int]:
    """Return the verdicts, or None with the failure; and how many calls were repeated."""
    failure = ""
    for repeated in range(retries + 1):
        try:
            return checked(reward.score(samples), reward, samples), "", repeated
        except LLMGymError:  # not a failed sample: a broken reward, a missing file or library
            raise
        except (Exception, SystemExit) as error:  # sys.exit in a reward is its failure, not ours
            failure = describe(error)
            logger.debug("%s() raised", reward.name, exc_info=True)
    return None, failure, retries


def name_of(fn: Callable[..., Any]) -> str:
    """Return how a function or factory is called in messages."""
    return str(getattr(fn, "__name__", type(fn).__name__))


# Text targets, so that naming a reward loads its file, and only that one.
REWARDS: dict[str, str] = {
    "exact": "llmgym.rewards.rules:Exact",
    "numeric": "llmgym.rewards.rules:Numeric",
    "math.boxed": "llmgym.rewards.boxed:Boxed",
    "math.verify": "llmgym.rewards.isolate:math_verify",
    "choice": "llmgym.rewards.rules:Choice",
    "regex": "llmgym.rewards.rules:Regex",
    "contains": "llmgym.rewards.rules:Contains",
    "json_schema": "llmgym.rewards.json_schema:JsonSchema",
    "think_format": "llmgym.rewards.rules:ThinkFormat",
    "language": "llmgym.rewards.rules:Language",
    "constant": "llmgym.rewards.rules:Constant",
    "code.tests": "llmgym.rewards.code:code_tests",
    "http": "llmgym.rewards.remote:http_reward",
    "judge": "llmgym.rewards.judge:judge_reward",
}
"""Rewards by name: "module:factory"."""

RewardSpec = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Reward | Callable[..., Verdict]

DEFAULTS = {
    "weight": 1.0,
    "kwargs": {},
    "isolated": True,
    "timeout_seconds": 10.0,
    "dialect": "auto",
}
SOURCES = ("function", "name", "model")
FIELDS = (*SOURCES, *DEFAULTS)
KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "function": (str, "text, PKG.MOD:FN or FILE.py:FN"),
    "name": (str, "text"),
    "model": (str, "text, a folder or hub id"),
    "weight": ((int, float), "a number"),
    "kwargs": (Mapping, "a mapping of arguments by name"),
    "isolated": (bool, "true or false"),
    "timeout_seconds": ((int, float), "a number"),
    "dialect": (str, "text, auto or the name of a dialect"),
}
EXPECTED_SPEC = (
    "a reward is a name, a function, a Reward, a mapping with one of these or a model, "
    "or a list of these"
)


def register_reward(name: str, target: str) -> None:
    """Give a reward a name that configs can use.

    Args:
        name: as in `{"name": ...}`; a name that exists keeps its first target.
        target: "package.module:factory"; called with the config's `kwargs`.

    Raises:
        RewardNotFound: the name belongs to another target.
    """
    if REWARDS.setdefault(name, target) != target:
        raise RewardNotFound(f'the reward name "{name}" already means {REWARDS[name]}')


def resolve(spec: RewardSpec) -> Reward:
    """Return the reward that a text, a mapping or a list of mappings names, one object a process.

    Args:
        spec: a registered name ("math.boxed"); a function ("pkg.mod:fn" or "file.py:fn"); a
            mapping with `name`, `function` or `model` (a reward model's folder) and perhaps
            `kwargs`, `weight` and a function's `dialect`; a list of mappings, which is their
            weighted sum; or an object: a reward, or a plain function. A function given by name
            runs in a process that is killed after `timeout_seconds` (10), unless `isolated` is
            false.

    Raises:
        RewardNotFound: no such name, file, module or function.
        RewardError: what is given is none of these, or a mapping with unknown keys, with values of
            a wrong type, or without exactly one source.
    """
    if isinstance(spec, Reward) or callable(spec):
        return _as_reward(spec, {})
    if isinstance(spec, str):
        spec = {"function" if ":" in spec else "name": spec}
    entries = [spec] if isinstance(spec, Mapping) else spec
    if not isinstance(entries, Sequence) or not entries:
        raise RewardError(f"{EXPECTED_SPEC}; got {shown(spec)}")
    return _resolved(json.dumps([_entry(entry) for entry in entries], sort_keys=True))


@lru_cache(maxsize=256)
def _resolved(key: str) -> Reward:
    entries = json.loads(key)
    built = [(_built(entry), float(entry["weight"])) for entry in entries]
    if len(built) == 1 and built[0][1] == 1.0 and "model" not in entries[0]:
        return built[0][0]
    parts: dict[str, tuple[Reward, float]] = {}
    for number, (reward, weight) in enumerate(built):
        name = f"{reward.name}_{number}" if reward.name in parts else reward.name
        parts[name] = (reward, weight)
    return _load("llmgym.rewards.compose:Sum")(**parts)


def _entry(spec: object) -> dict[str, Any]:
    if not isinstance(spec, Mapping):
        raise RewardError(f"{EXPECTED_SPEC}; an entry of the list is {shown(spec)}")
    entry = {str(key): value for key, value in spec.items() if value is not None}
    for key in entry:
        if key not in FIELDS:
            near = get_close_matches(key, FIELDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(FIELDS)}."
            raise RewardError(f'a reward has no setting "{key}". {hint}')
    if sum(source in entry for source in SOURCES) != 1:
        raise RewardError(f"a reward has one of {', '.join(SOURCES)}; got {entry}")
    if entry.get("dialect", "auto") != "auto" and "function" not in entry:
        raise RewardError(f"a dialect belongs to a function; got {entry}")
    for key, value in entry.items():
        kinds, expected = KINDS[key]
        if not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool):
            raise RewardError(f"the setting {key} of a reward is {expected}; got {shown(value)}")
    try:
        json.dumps(entry)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"the kwargs of a reward are plain JSON, so that other processes can build it; got "
            f"{shown(entry['kwargs'])}: {error}"
        ) from error
    return DEFAULTS | entry


def _built(entry: Mapping[str, Any]) -> Reward:
    if "function" in entry and entry["isolated"]:
        inside = {**entry, "weight": 1.0}
        timeout = float(entry["timeout_seconds"])
        return _load("llmgym.rewards.isolate:Isolated")(inside, timeout=timeout).start()
    kwargs = entry["kwargs"]
    if "model" in entry:
        arguments = {**kwargs, "model": entry["model"]}
        judge: Any = _called(_load("llmgym.rewards.model:RewardModel"), arguments)
        judge.check()
        return judge
    if "name" in entry:
        return _called(_load(_target(entry["name"])), kwargs)
    return _as_reward(_load(entry["function"]), kwargs, entry["dialect"])


def _as_reward(
    made: Any,  # noqa: ANN401 - a user's object
    kwargs: Mapping[str, Any],
    dialect: str = "auto",
) -> Reward:
    if isinstance(made, type):
        made, kwargs = _called(made, kwargs), {}
    if isinstance(made, Reward):
        return made
    if not callable(made):
        raise RewardError(f"{EXPECTED_SPEC}; got {shown(made)}")
    return _load("llmgym.rewards.function:from_function")(made, kwargs=kwargs, dialect=dialect)


def _called(factory: Callable[..., Reward], kwargs: Mapping[str, Any]) -> Reward:
    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        raise RewardError(
            f"reward {name_of(factory)}: {error}; got kwargs {dict(kwargs)}"
        ) from error
    return factory(**kwargs)


def _target(name: str) -> str:
    if name in REWARDS:
        return REWARDS[name]
    if name.endswith(".py"):
        _load(name)  # says which functions the file has
    near = get_close_matches(name, REWARDS, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(REWARDS))}."
    raise RewardNotFound(
        f'no reward is named "{name}". {hint}\nA function is named PKG.MOD:FN or FILE.py:FN.'
    )


def _load(address: str) -> Any:  # noqa: ANN401 - an address may name anything
    file = Path(address.rpartition(":")[0])
    if file.suffix == ".py" and os.path.isfile(file):
        logger.info("reward %s, sha256 %s", address, sha256(file.read_bytes()).hexdigest())
    try:
        return registry.load(address)
    except PluginError as error:
        again = address if ":" in address else f"{address}:FN"
        raise RewardNotFound(
            f"{error}\nCorrect it, then try it: llmgym rewards check {shlex.quote(again)}"
        ) from error
