"""What one step is made of: the text the environment reads, the score in total, the info."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Self, final

import numpy as np

from llmgym.errors import EnvContractError, RewardError
from llmgym.executors import Outcome
from llmgym.messages import Completion, Sample, Score


class Reading(Completion):
    """What the environment reads of a response: an action wrapper's text, and the response itself.

    The dialogue and `Sample.response` keep the whole response; the environment sees this text.
    """

    __slots__ = ("whole",)
    whole: Completion

    @classmethod
    def of(cls, action: str, text: str) -> Self:
        """Return `text` as the reading of `action`, which may be a reading itself."""
        whole = whole_response(action)
        reading = cls(text, finish_reason=whole.finish_reason, policy_version=whole.policy_version)
        reading.whole = whole
        return reading

    def __reduce__(self) -> tuple[Any, tuple[Completion, str]]:
        """Rebuild from the two texts."""
        return type(self).of, (self.whole, str(self))


def whole_response(action: str) -> Completion:
    """Return the response the policy wrote: of a reading, what was read; of a `str`, itself.

    Raises:
        EnvContractError: the action is no text.
    """
    if isinstance(action, Reading):
        return action.whole
    if isinstance(action, Completion):
        return action
    if not isinstance(action, str):
        kind = type(action).__name__
        raise EnvContractError(f"An action is text (str or Completion); received {kind}")
    return Completion(action)


def is_over(sample: Sample) -> bool:
    """Return True for the last sample of an episode."""
    return sample.terminated or sample.truncated


def is_valid(sample: Sample, score: Score) -> bool:
    """Return False where the reward means nothing: it failed, or nobody scored the episode."""
    failed = sample.reason is not None and sample.reason.invalidates
    unscored = score.status == "abstain" and is_over(sample)
    return score.status != "error" and not (failed or unscored) and isfinite(score.value)


def reward_of(sample: Sample, score: Score) -> float:
    """Return the reward of a step: the score, or 0.0 where it is not valid; always finite."""
    return float(score.value) if is_valid(sample, score) else 0.0


def why_invalid(sample: Sample, score: Score) -> str | None:
    """Return why the reward of a step means nothing, or what a valid score says of itself."""
    if score.error is not None or is_valid(sample, score):
        return score.error
    if not isfinite(score.value):
        return f"the reward is {score.value}, which is not finite"
    return "nobody scored the last response of the episode"


def step_info(sample: Sample, score: Score) -> dict[str, Any]:
    """Return the info of one step: new, without clocks and without NaN."""
    info: dict[str, Any] = {
        "task_id": sample.task.id,
        "task": sample.task.source,
        "turn": sample.turn + 1,
        "reward_valid": is_valid(sample, score),
    }
    info |= {f"reward/{name}": float(value) for name, value in score.parts.items()}
    if sample.reason is not None:
        info["stop_reason"] = sample.reason.value
    error = why_invalid(sample, score)
    if error is not None:
        info["reward_error"] = error
    return info


def total(sample: Sample, score: Score) -> Score:
    """Add what the environment paid; a failure of either makes the whole an error of value 0.0.

    Raises:
        RewardError: a span is empty, or not within the response.
    """
    for start, end, _ in score.spans:
        if not 0 <= start < end <= len(sample.response):
            raise RewardError(
                f"a span of a score is (start, end, reward) with start < end, over the characters "
                f"0 to {len(sample.response)} of the response; got ({start}, {end}) for task "
                f"{sample.task.id}.\nCount in Sample.response, not in Sample.text"
            )
    if sample.reason is not None and sample.reason.invalidates and score.status != "error":
        error = f"the episode ended by {sample.reason.value}"
        return Score(0.0, status="error", error=error)
    if score.status == "error":
        return replace(score, value=0.0)
    if score.status == "abstain":
        error = score.error or "the reward abstained from the last response of the episode"
        score = replace(score, value=0.0, error=error if is_over(sample) else score.error)
    value = score.value + sample.env_reward
    if not isfinite(value):
        error = f"the environment paid {sample.env_reward}, which is not finite"
        return replace(score, value=0.0, status="error", error=error)
    return replace(score, value=value)


def objects(values: Sequence[object]) -> np.ndarray:
    """Return values as a one-dimensional array of objects, whatever they are."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@final
class BatchStep:
    """The results of one step of N slots, as they come in.

    Gymnasium lets the first slot's type rule an info array; here every array has its own type.
    """

    def __init__(self, num_envs: int) -> None:
        self.rewards = np.zeros(num_envs, dtype=np.float64)
        self.terminated = np.zeros(num_envs, dtype=np.bool_)
        self.truncated = np.zeros(num_envs, dtype=np.bool_)
        self.env_ms = np.zeros(num_envs, dtype=np.float64)
        self.samples: dict[int, Sample] = {}
        self._score_ms = np.zeros(num_envs, dtype=np.float64)
        self._valid = np.ones(num_envs, dtype=np.bool_)
        self._retries = np.zeros(num_envs, dtype=np.int64)
        self._reasons = objects([None] * num_envs)
        self._errors = objects([None] * num_envs)
        self._spans = objects([None] * num_envs)
        self._env_rewards = np.zeros(num_envs, dtype=np.float64)
        self._parts: dict[str, np.ndarray] = {}

    def fail(self, slot: int, outcome: Outcome) -> None:
        """Record a slot that raised or was late: truncated, reward 0.0, not valid."""
        assert outcome.failure is not None
        self.truncated[slot], self._valid[slot] = True, False
        self._reasons[slot], self._errors[slot] = outcome.failure.value, outcome.error

    def accept(self, slot: int, score: Score, milliseconds: float) -> None:
        """Record the score of a slot's sample, and the time of the call that made it."""
        sample = self.samples[slot]
        self.rewards[slot] = reward_of(sample, score)
        self._score_ms[slot] = milliseconds
        self._valid[slot] = is_valid(sample, score)
        self._errors[slot] = why_invalid(sample, score)
        self._retries[slot] = score.retries
        if self._valid[slot]:
            self._spans[slot] = score.spans
            self._env_rewards[slot] = sample.env_reward
        self._reasons[slot] = None if sample.reason is None else sample.reason.value
        for name, value in score.parts.items():
            absent = np.full(len(self.rewards), np.nan, dtype=np.float32)
            self._parts.setdefault(f"reward/{name}", absent)[slot] = value

    def infos(self) -> dict[str, np.ndarray]:
        """Return the infos, one array of [num_envs] for each name."""
        return {
            "reward_valid": self._valid,
            "reward_error": self._errors,
            "reward_retries": self._retries,
            "reward_spans": self._spans,
            "env_reward": self._env_rewards,
            "stop_reason": self._reasons,
            "env_ms": self.env_ms,
            "score_ms": self._score_ms,
            **self._parts,
        }


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """What a vector's infos say of one slot's step.

    Attributes:
        valid: False where the reward means nothing.
        error: why it does not, or why the environment ended the episode.
        retries: how often the reward was asked again.
        spans: (start, end, reward) of what belongs to spans of the response, in characters.
        env_reward: the part of the reward that the environment itself paid.
        stop_reason: why the episode was cut.
        task_id: of the slot's task.
        score_ms: milliseconds of the call that scored the response.
        parts: named parts of the reward that the response has.
    """

    valid: bool
    error: str | None
    retries: int
    spans: Sequence[tuple[int, int, float]]
    env_reward: float
    stop_reason: str | None
    task_id: str | None
    score_ms: float
    parts: Mapping[str, float]

    @classmethod
    def of(cls, infos: Mapping[str, np.ndarray], slot: int) -> "StepInfo":
        """Read one slot of the infos of `LLMVectorEnv.step`."""
        parts = {
            name.removeprefix("reward/"): float(values[slot])
            for name, values in infos.items()
            if name.startswith("reward/") and not np.isnan(values[slot])
        }
        return cls(
            valid=bool(infos["reward_valid"][slot]),
            error=infos["reward_error"][slot],
            retries=int(infos["reward_retries"][slot]),
            spans=infos["reward_spans"][slot] or (),
            env_reward=float(infos["env_reward"][slot]),
            stop_reason=infos["stop_reason"][slot],
            task_id=infos["task_id"][slot],
            score_ms=float(infos["score_ms"][slot]),
            parts=parts,
        )
