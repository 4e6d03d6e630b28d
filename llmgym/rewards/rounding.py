"""How far two scores of one sample may lie apart by rounding alone: by type and by size.

A network adds up in another order in another batch, so its scores differ in their last digits: the
fewer digits the type it computes in has, the earlier. A `Rounded` reward states how far; figures
that are all float32, and no shorter type, show it. All others are exact, but for sums in float64.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from llmgym.rewards.base import Reward
from llmgym.rewards.scale import walked

# Units of the type's machine epsilon. Measured for networks of 2 to 24 layers, alone and in a
# batch: up to 25 in float32; up to 5 in bfloat16, whose products are added up in float32.
FLOAT32 = 256 * 2.0**-23
BFLOAT16 = 16 * 2.0**-7
FLOAT16 = 16 * 2.0**-10
EXACT = 64 * 2.0**-52
BFLOAT16_BITS = 8


@runtime_checkable
class Rounded(Protocol):
    """A reward that computes in a type of its own."""

    @property
    def rounding(self) -> float:
        """How far two scores of a sample may lie apart, as a share of the largest score."""
        ...


def tolerance(scores: Iterable[float], reward: Reward | None = None) -> float:
    """Return how far two scores of one sample may lie apart by rounding.

    Args:
        scores: all that are compared; the largest is what errors are a share of.
        reward: what scored; it or a part of it may state its rounding.
    """
    finite = [float(score) for score in scores if math.isfinite(score)]
    stated = [inner.rounding for _, inner in walked(reward) if isinstance(inner, Rounded)]
    return max([_own(finite), *stated]) * max(map(abs, finite), default=0.0)


def _own(scores: Sequence[float]) -> float:
    """Return float32's rounding where figures are that and no shorter type; else float64's."""
    narrow = np.asarray(scores, np.float32).astype(np.float64)
    mantissas = np.frexp(narrow)[0] * 2.0**BFLOAT16_BITS
    is_float32 = np.array_equal(narrow, scores) and bool((mantissas % 1).any())
    return FLOAT32 if is_float32 else EXACT


def told_apart(first: float, then: float) -> tuple[str, str]:
    """Return two figures in as many digits, six at least, as it takes to see that they differ."""
    texts = [(f"{first:.{digits}g}", f"{then:.{digits}g}") for digits in range(6, 18)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])
