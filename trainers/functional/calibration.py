"""Calibration: is a judge that says 0.8 right eight times of ten?

Shapes: B predictions, N bins.
"""

import torch
from jaxtyping import Float
from torch import Tensor

NUM_BINS = 10


def reliability(
    confidence: Float[Tensor, " B"], correct: Float[Tensor, " B"]
) -> Float[Tensor, "N 3"]:
    """Sort predictions into bins of equal width over [0, 1].

    Args:
        confidence: [B] probability of what was judged.
        correct: [B] 1 where that is right, 0 where it is wrong, 0.5 of a tie.

    Returns:
        [N, 3] of each bin, float64: how many, sum of confidence, sum of correct. Bins of several
        parts add up.
    """
    number = (confidence.double() * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    ones = torch.ones_like(confidence, dtype=torch.float64)
    columns = torch.stack([ones, confidence.double(), correct.double()], dim=1)
    return columns.new_zeros(NUM_BINS, 3).index_add_(0, number, columns)


def calibration_error(bins: Float[Tensor, "N 3"]) -> float:
    """Return the expected calibration error of `bins` [N, 3]; NaN of none.

        ECE = sum_n (count_n / count) |mean confidence_n - accuracy_n|

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    return float((bins[:, 1] - bins[:, 2]).abs().sum() / bins[:, 0].sum())
