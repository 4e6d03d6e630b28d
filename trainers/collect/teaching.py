"""What a teacher adds to a rollout: a reward for each token, its exact mean, and their metrics.

    reward   coef * clip(log pi_T(a) - log pi_S(a), +-c)
    value    coef * E_{a ~ pi_S} clip(log pi_T(a) - log pi_S(a), +-c)

B rows, T actions. pi_S is the policy that sampled, so both are fixed for all epochs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from trainers.batch import Metrics
from trainers.config import DistillConfig
from trainers.functional.distillation import TeacherComparison, clipped


class Lesson(NamedTuple):
    """What a teacher pays, [B, T] each, 0 where the mask is False.

    Attributes:
        rewards: for each action.
        values: their mean over all actions of the state, weighted by the policy that sampled.
    """

    rewards: Tensor
    values: Tensor


def log_ratios(comparison: TeacherComparison) -> Tensor:
    """Return log teacher - log student [B, T] of the actions."""
    return comparison.teacher_logprobs - comparison.logprobs


def lesson_of(
    comparison: TeacherComparison, response_mask: Bool[Tensor, "B T"], config: DistillConfig
) -> Lesson:
    """Return what a teacher pays for the actions of the mask [B, T]."""
    rewards = config.coef * clipped(log_ratios(comparison), config.clip)
    values = config.coef * comparison.expected
    zero = torch.zeros_like(rewards)
    return Lesson(
        torch.where(response_mask, rewards, zero), torch.where(response_mask, values, zero)
    )


def teacher_metrics(
    comparison: TeacherComparison, response_mask: Bool[Tensor, "B T"], config: DistillConfig
) -> Metrics:
    """Return how far both are apart on this rank's actions [B, T], not yet pooled."""
    ratios = log_ratios(comparison)
    figures = {
        "distill/log_ratio": ratios,
        "distill/reverse_kl": comparison.reverse_kl,
        "distill/forward_kl": comparison.forward_kl,
    }
    if config.clip is not None:
        figures["distill/clipped_frac"] = (ratios.abs() > config.clip).float()
    return Metrics.masked(figures, response_mask)
