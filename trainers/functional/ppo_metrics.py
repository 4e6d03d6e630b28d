"""What an update and an iteration's experience look like, as metrics. Nothing here is learned from.

Names, units and healthy ranges: docs/metrics.md.
"""

import math
from collections.abc import Mapping

import torch

from trainers.batch import Experience, Metrics, PolicyOutput
from trainers.config import Config
from trainers.config.ppo import PPOConfig
from trainers.distributed.collectives import global_metrics, global_moments, global_sum
from trainers.errors import LOWER_RATES, NonFiniteError
from trainers.functional.kl import kl_estimate, ratio_of


@torch.no_grad()
def describe_update(experience: Experience, output: PolicyOutput, settings: Config) -> Metrics:
    """Describe one micro-batch [B, T] of an update; every mean is over its actions."""
    config = settings.ppo
    logprobs, entropies, values = output.logprobs, output.entropy, output.values
    assert entropies is not None
    old, advantages = experience.old_logprobs, experience.advantages
    mask = experience.response_mask
    ratio = ratio_of(logprobs, old)
    gain = ratio * advantages
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages
    figures = {
        "policy/approxkl_avg": kl_estimate(old, logprobs, "k3"),
        "policy/clipfrac_avg": (clipped < gain).float(),
        "policy/entropy_avg": entropies,
        "policy/ratio_avg": ratio,
    }
    if config.clip_dual is not None:
        bounded = (advantages < 0) & (gain < config.clip_dual * advantages)
        figures["policy/clipfrac_dual"] = bounded.float()
    if config.value_clip is not None and values is not None:
        assert experience.old_values is not None
        moved = (values - experience.old_values).abs() > config.value_clip
        figures["value/clipfrac_avg"] = moved.float()
    if settings.reuses_logprobs and experience.generator_logprobs is not None:
        difference = (logprobs - experience.generator_logprobs).abs()
        figures["policy/generator_logp_diff"] = difference
    metrics = Metrics.masked(figures, mask)
    if not metrics.means["policy/ratio_avg"][1]:
        return metrics
    # Before the clamp of the exponent, so that nothing hides behind it.
    log_ratio = (logprobs - old).masked_fill(~mask, -math.inf)
    maxima = {"policy/ratio_max": float(log_ratio.max().double().exp())}
    if "policy/generator_logp_diff" in figures:
        largest = figures["policy/generator_logp_diff"][mask].max()
        maxima["policy/generator_logp_diff_max"] = float(largest)
    return metrics | Metrics(maxima=maxima)


def pooled_losses(losses: Mapping[str, float], config: PPOConfig) -> Metrics:
    """Sum each loss over all ranks, and let every rank see the same vote on finiteness.

    Raises:
        NonFiniteError: on every rank, if one is not finite.
    """
    totals = global_sum(torch.tensor(list(losses.values()), dtype=torch.float64))
    named = {name: float(total) for name, total in zip(losses, totals, strict=True)}
    broken = [f"{name} {value}" for name, value in named.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteError(
            f"the loss is not finite ({', '.join(broken)}); no weight was changed. {LOWER_RATES}"
        )
    if config.kl_placement != "loss":
        del named["loss/kl"]
    if not config.has_critic:
        del named["loss/value_avg"]
    return Metrics.scalars(named)


def describe(experience: Experience) -> Metrics:
    """Return what advantages, values and returns look like, over all ranks.

    Advantages are those before whitening; without a critic, those that are learned from.
    """
    mask, values, returns = experience.response_mask, experience.old_values, experience.returns
    raw = experience.advantages if values is None or returns is None else returns - values
    mean, variance = global_moments(raw, mask)
    figures = {"advantages/mean": float(mean), "advantages/std": float(variance.sqrt())}
    if values is not None and returns is not None:
        value_mean, _ = global_moments(values, mask)
        return_mean, return_variance = global_moments(returns, mask)
        figures |= {"value/mean": float(value_mean), "value/return_mean": float(return_mean)}
        if return_variance > 0:
            figures["value/explained_var"] = 1.0 - float(variance / return_variance)
    picked = raw[mask].double()
    extremes = Metrics()
    if picked.numel():
        extremes = Metrics(
            minima={"advantages/min": float(picked.min())},
            maxima={"advantages/max": float(picked.max())},
        )
    return Metrics.scalars(figures) | global_metrics(extremes)
