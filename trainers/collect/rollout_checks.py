"""What ends a run after a rollout: rewards that failed, a generator that drifts; collectives."""

import torch
from torch import Tensor

from llmgym.errors import RewardError
from trainers.collect.episodes import Episodes
from trainers.distributed.collectives import gather, global_max, global_sum
from trainers.errors import MismatchError


def check_mismatch(
    logprobs: Tensor, generator_logprobs: Tensor, mask: Tensor, tolerance: float | None
) -> None:
    """Raise on every rank where a generator is too far from the trainer; a collective.

    Args:
        logprobs: [B, T] by the trainer's forward.
        generator_logprobs: [B, T] as the generator reported them.
        mask: [B, T] True on actions.
        tolerance: maximum mean difference, in nats per token; None: no maximum.

    Raises:
        MismatchError: with both figures.
    """
    if tolerance is None:
        return
    apart = (logprobs - generator_logprobs).abs().double()[mask]
    total, count = global_sum(torch.stack([apart.sum(), mask.sum().double()])).tolist()
    largest = float(global_max(apart.max() if len(apart) else apart.new_zeros(())))
    mean = total / max(count, 1)
    if not mean <= tolerance:
        raise MismatchError(
            f"the generator's log-probabilities are {mean:.3g} nats per token from the trainer's "
            f"(maximum {largest:.3g}), and generation.tolerance is {tolerance:g}: it has other "
            "weights, another temperature, or rounds too coarsely.\n"
            "Use --generation.engine transformers, or --model.dtype float32; a larger "
            "--generation.tolerance only with --ppo.mismatch-correction tis"
        )


def check_error_rate(episodes: Episodes, max_error_rate: float) -> None:
    """Raise on every rank where more than a share of all rewards failed; a collective.

    Raises:
        RewardError: with the first failure, of the lowest rank that had one.
    """
    played = [slot for slot in episodes.slots if not slot.too_long]
    failed = [slot for slot in played if not slot.valid]
    counts = global_sum(torch.tensor([len(failed), len(played)], dtype=torch.float64))
    errors, total = counts.tolist()
    first = None
    if failed:
        completion = failed[0].completions[-1][:80]
        first = f"{failed[0].error} on task {failed[0].task_id} (response {completion!r})"
    reasons = [text for text in gather(first) if text is not None]
    if errors > max_error_rate * total:
        raise RewardError(
            f"the reward failed on {errors / total:.0%} of samples, max_error_rate is "
            f"{max_error_rate:.0%}. First: {reasons[0]}. A failed reward is never counted as 0.\n"
            "Mend the reward or the environment; failures that are its nature: --ppo.max-error-rate"
        )
