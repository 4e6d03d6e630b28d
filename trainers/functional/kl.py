"""Ratios and KL divergences from log-probabilities, and the controller of the KL's weight.

The KL of the reward is estimated in `collect/rollout.py` and subtracted in
`collect/reward_shaping.py`; that of the loss is a term of `ppo.update`.
"""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from trainers.config.ppo import PPOConfig

MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8 is still far from fp32's overflow; beyond it exp gives inf, and inf * 0 = NaN."""


def ratio_of(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return the ratio exp(logprobs - old_logprobs) [B, T], the exponent kept in +-20."""
    return torch.exp((logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def kl_estimate(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], estimator: str
) -> Float[Tensor, "B T"]:
    """Estimate KL(policy || reference) at sampled actions [B, T], in nats, d = logp - ref_logp.

        k1 = d                 unbiased, signed: a batch may well come out negative
        k2 = d^2 / 2           biased value, but its gradient is the KL's when on-policy
        k3 = exp(-d) - 1 + d   unbiased and >= 0, but its gradient is biased
        k3_straight_through    the value of k3 with the gradient of k2

    Args:
        logprobs: [B, T] of the policy that sampled.
        ref_logprobs: [B, T] of the reference; no gradient flows into it.
        estimator: one of the four names.

    Raises:
        KeyError: another name.

    Source: Schulman, joschu.net/blog/kl-approx.html; Tang and Munos 2025, arXiv:2506.09477.
    """
    log_ratio = logprobs - ref_logprobs.detach()
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3 = torch.expm1(-bounded) + bounded
    if estimator == "k3":
        return k3
    k2 = {"k3_straight_through": log_ratio.square() / 2}[estimator]
    return k3.detach() + (k2 - k2.detach())


@final
class KLController:
    """Hold the KL coefficient, and steer it towards `ppo.kl_target` when adaptive.

        error = clip(kl / kl_target - 1, -0.2, 0.2);  coef <- coef * (1 + error * n / kl_horizon)

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """

    def __init__(self, config: PPOConfig) -> None:
        """Start at the configured coefficient."""
        self._config = config
        self.coef = config.kl_weight if config.kl_placement == "reward" else 0.0

    def update(self, kl_per_episode: float, num_episodes: int) -> None:
        """Take an iteration's mean KL, in nats per episode, over `num_episodes` of all ranks."""
        if self._config.kl_controller == "fixed":
            return
        error = min(max(kl_per_episode / self._config.kl_target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * num_episodes / self._config.kl_horizon

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.coef = float(state["coef"])
