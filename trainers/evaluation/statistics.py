"""A mean of held-out scores with its 95 % interval; a comparison task by task."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from llmgym.errors import RewardError
from trainers.batch import Evaluation
from trainers.errors import ConfigError

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MAX_BCA = 1000  # the jackknife of BCa takes memory quadratic in the number of scores

Bounds = tuple[float, float]
UNKNOWN: Bounds = (-math.inf, math.inf)


def interval(scores: Sequence[float], bounds: Bounds = UNKNOWN) -> tuple[float, float]:
    """Return the 95 % interval of the mean: Wilson's where bounds carry it, else by bootstrap.

    NaN scores, of tasks whose reward failed, are left out.

    Scores that all lie on the bounds, such as right and wrong, are a share: Wilson's interval. None
    within bounds spreads wider. Equal scores within bounds are like a share of which all were seen:
    others are rare by Wilson, and none lies beyond a bound. Where bounds are not known, equal
    scores say nothing of the spread: both ends are NaN. The bootstrap's draws are fixed, so the
    same scores give the same interval.

    Args:
        scores: one a task.
        bounds: the least and the most that a task can earn; infinite where it is not known.

    Source: Wilson 1927, JASA 22:209; Efron 1987, JASA 82:171 (BCa).
    """
    values = _finite(scores)
    low, high = bounds
    is_bounded = math.isfinite(high - low) and low <= values.min() and values.max() <= high
    if is_bounded and low < high and np.isin(values, bounds).all():
        ends = _wilson(int((values == high).sum()), len(values))
        return low + ends[0] * (high - low), low + ends[1] * (high - low)
    if np.ptp(values) > 0.0:
        return _bootstrap(values)
    if not is_bounded:
        return math.nan, math.nan
    mean, unseen = float(values[0]), _wilson(0, len(values))[1]
    return mean - unseen * (mean - low), mean + unseen * (high - mean)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return (mean of ours - theirs, low, high), task by task, by bootstrap.

    A task whose reward failed on either side, NaN, is left out. Differences that are all equal have
    their mean as interval: on these tasks the two do not differ otherwise.

    Args:
        ours: one score a task.
        theirs: of the same tasks, in the same order.

    Raises:
        ConfigError: the numbers of tasks differ.
    """
    if len(ours) != len(theirs) or not ours:
        raise ConfigError(
            f"a paired comparison needs the same tasks, got {len(ours)} and {len(theirs)} scores. "
            "Evaluate both with the same --eval.num-tasks and --eval.kwargs."
        )
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    counted = _finite(differences)
    return (float(counted.mean()), *_bootstrap(counted))


def summarize(
    env: str,
    scores: Sequence[float],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    bounds: Bounds = UNKNOWN,
) -> Evaluation:
    """Return the evaluation that one score a task makes; `bounds` as for `interval`.

    Raises:
        RewardError: not one score counts.
    """
    low, high = interval(scores, bounds)
    return Evaluation(
        env=env,
        mean=float(_finite(scores).mean()),
        ci_low=low,
        ci_high=high,
        scores=tuple(scores),
        rows=tuple(rows),
    )


def paired_rows(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """Return a row a task: its prompt, both completions and both rewards."""
    return [
        {
            "prompt": old["prompt"],
            "before": old["completion"],
            "after": new["completion"],
            "reward_before": old["reward"],
            "reward_after": new["reward"],
        }
        for old, new in zip(before.rows, after.rows, strict=True)
    ]


def _finite(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    counted = values[~np.isnan(values)]
    if not len(counted):
        raise RewardError(
            f"none of {len(values)} tasks has a score. Mend the reward, or raise --eval.num-tasks."
        )
    return counted


def _wilson(successes: int, number: int) -> tuple[float, float]:
    test = stats.binomtest(successes, number)
    bounds = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(bounds.low), float(bounds.high)


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2 or np.ptp(values) == 0.0:
        return float(values.mean()), float(values.mean())
    result = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=NUM_RESAMPLES,
        method="BCa" if len(values) <= MAX_BCA else "percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(result.low), float(result.high)
