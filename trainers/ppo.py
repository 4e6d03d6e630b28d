"""Proximal policy optimization: the whole algorithm, in the order it runs.

    collect -> make_experience (gae, whiten) -> epochs of minibatches (policy_loss, value_loss)

Not here: `gae` and what replaces it without a critic (`functional/advantages.py`), acting
(`collect/`), the reward that PPO is paid and its KL (`collect/reward_shaping.py`), models,
optimizers and ranks (`learner.py`, `backends/`), logging and checkpoints (`runner/`). `train` is a
generator of metrics and does no I/O.

Shapes: B rows (sequences, or steps of an environment), T actions of a row. `response_mask` is True
on actions; every sum runs over it and over all ranks, and every mean divides once, by a global
count. Sources: Schulman et al. 2017, arXiv:1707.06347; docs/ppo.md has all equations.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import overload

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainers.batch import ControlInputs, Experience, Metrics, PolicyOutput, Rollout, floats
from trainers.collect.base import Collector
from trainers.config import Config
from trainers.config.ppo import PPOConfig
from trainers.distributed.collectives import (
    global_max,
    global_metrics,
    global_moments,
    global_sum,
    phase,
)
from trainers.functional.advantages import ESTIMATORS, taught
from trainers.functional.advantages import gae as gae  # `trainers.ppo.gae`, as 0.1 had it
from trainers.functional.kl import kl_estimate, ratio_of
from trainers.functional.logprobs import EntropyMode
from trainers.functional.ppo_metrics import describe, describe_update, pooled_losses
from trainers.functional.trajectories import ActionOrder, Trajectories
from trainers.learner import Learner

MAX_IMPORTANCE = 2.0
"""Cap of truncated importance sampling (Yao et al. 2025; verl's `tis_imp_ratio_cap`)."""

LOSSES = {
    "loss/policy_avg": "policy",
    "loss/value_avg": "value",
    "loss/kl": "kl",
    "loss/total": "total",
}
"""What is logged of the objective, and the part of it that it is."""


def whiten(
    advantages: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Shift and scale [B, T] to mean 0, variance 1 over the mask and all ranks; 0 elsewhere.

        A <- (A - mean) / sqrt(variance + 1e-8)

    Population variance: one action, or equal ones, give 0 and not NaN.
    """
    mean, variance = global_moments(advantages, response_mask)
    whitened = (advantages.double() - mean) / torch.sqrt(variance + 1e-8)
    return torch.where(response_mask, whitened, torch.zeros_like(whitened)).to(advantages.dtype)


def _estimated(rollout: Rollout, config: PPOConfig) -> tuple[Tensor, Tensor | None]:
    """Estimate advantages and the critic's targets [B, T] over the actions of each episode."""
    order = ActionOrder.of(rollout)
    trajectories = Trajectories.of(rollout, order, config.samples_per_prompt)
    advantages, returns = ESTIMATORS[config.advantage](trajectories, config)
    shape = rollout.rewards.shape
    targets = None if returns is None else order.spread(returns, shape)
    return order.spread(advantages, shape), targets


@overload
def _only(mask: Tensor, values: Tensor) -> Tensor: ...
@overload
def _only(mask: Tensor, values: Tensor | None) -> Tensor | None: ...
def _only(mask: Tensor, values: Tensor | None) -> Tensor | None:
    """Put 0 wherever `mask` is False: a NaN there would reach the gradient through a 0 * NaN."""
    return None if values is None else torch.where(mask, values, torch.zeros_like(values))


def make_experience(rollout: Rollout, config: PPOConfig) -> Experience:
    """Turn what happened into what is learned from: advantages, returns, fixed old figures.

    Steps of an environment become rows of their own, since an MLP has no memory.
    """
    advantages, returns = _estimated(rollout, config)
    if config.whitens_advantages:
        advantages = whiten(advantages, rollout.response_mask)
    advantages = taught(advantages, rollout.teacher_rewards, rollout.teacher_values)
    generator_says = config.old_logprobs == "generator"
    old = rollout.generator_logprobs if generator_says else rollout.logprobs
    assert old is not None, "ppo.old_logprobs is generator, but the rollout has no such figures"
    mask = rollout.response_mask
    experience = Experience(
        inputs=rollout.inputs,
        response_mask=mask,
        old_logprobs=_only(mask, old),
        ref_logprobs=_only(mask, rollout.ref_logprobs),
        generator_logprobs=_only(mask, rollout.generator_logprobs),
        old_values=_only(mask, rollout.values),
        advantages=advantages,
        returns=returns,
        index=rollout.index,
    )
    return experience.flat() if isinstance(rollout.inputs, ControlInputs) else experience


def minibatches(
    experience: Experience, config: Config, iteration: int, epoch: int
) -> Iterator[Tensor]:
    """Yield this rank's row numbers [n] of each minibatch of an epoch.

    Membership is a function of (seed, iteration, epoch, global sequence index) alone, so it does
    not depend on how rows lie on ranks, and rows of an episode stay together; n may be 0.
    """
    total = 1 + int(global_max(experience.index.max() if len(experience) else torch.tensor(-1)))
    rng = np.random.default_rng((config.run.seed, iteration, epoch))
    place = np.empty(total, np.int64)
    place[rng.permutation(total)] = np.arange(total)
    mine = place[experience.index.cpu().numpy()]
    members = mine.argsort(kind="stable")
    size = math.ceil(total / config.ppo.num_minibatches)
    ends = np.searchsorted(mine[members], size * np.arange(1, config.ppo.num_minibatches))
    for minibatch in np.split(members, ends):
        yield torch.as_tensor(minibatch, device=experience.index.device)


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
) -> Float[Tensor, "B T"]:
    """Return the clipped surrogate of each action, to be minimized.

        ratio = exp(logprobs - old_logprobs)
        loss  = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)
        loss  = min(loss, -clip_dual * A)   where A < 0 and clip_dual is given

    Args:
        logprobs: [B, T] of the actions, now.
        old_logprobs: [B, T] when they were taken.
        advantages: [B, T].
        clip_low: how far below 1 the ratio still earns.
        clip_high: how far above 1 it still earns.
        clip_dual: bound for actions that turned out badly and became likely; > 1, or None.

    Source: arXiv:1707.06347 eq. 7; dual clip: Ye et al. 2020, arXiv:1912.09729 eq. 5.
    """
    ratio = ratio_of(logprobs, old_logprobs)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if clip_dual is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -clip_dual * advantages), loss)


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    *,
    value_clip: float | None = None,
) -> Float[Tensor, "B T"]:
    """Return half the squared error of each value, the worse of the plain and the clipped one.

        loss = 1/2 max((V - R)^2, (clip(V, V_old - value_clip, V_old + value_clip) - R)^2)

    Args:
        values: [B, T] critic, now.
        old_values: [B, T] critic when the actions were taken.
        returns: [B, T] targets.
        value_clip: largest move that is paid for, in reward units; None: off.

    Source: Schulman et al., the `baselines` implementation; Engstrom et al., arXiv:2005.12729.
    """
    error = (values - returns).square()
    if value_clip is None:
        return 0.5 * error
    near = values.clamp(old_values - value_clip, old_values + value_clip)
    return 0.5 * torch.maximum(error, (near - returns).square())


def weighted(experience: Experience, config: Config) -> tuple[Experience, float]:
    """Give each action its weight [B, T]; return this rank's part of the denominator N as well."""
    mask, aggregation = experience.response_mask.float(), config.ppo.loss_aggregation
    if aggregation == "token":
        return replace(experience, weights=mask), float(mask.sum())
    lengths = mask.sum(1, keepdim=True)
    rows = float((lengths > 0).sum())
    if aggregation == "sequence":
        return replace(experience, weights=mask / lengths.clamp(min=1)), rows
    return replace(experience, weights=mask), rows * config.generation.max_new_tokens  # 2503.20783


def _terms(experience: Experience, output: PolicyOutput, config: PPOConfig) -> dict[str, Tensor]:
    """Return the terms of the objective for each action, [B, T] each, 0 outside the mask."""
    logprobs, entropies, values = output.logprobs, output.entropy, output.values
    surrogate = policy_loss(
        logprobs,
        experience.old_logprobs,
        experience.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        clip_dual=config.clip_dual,
    )
    if config.mismatch_correction == "tis":
        assert experience.generator_logprobs is not None
        trust = ratio_of(experience.old_logprobs, experience.generator_logprobs)
        surrogate = surrogate * trust.clamp(max=MAX_IMPORTANCE)
    assert entropies is not None
    terms = {"policy": surrogate, "entropy": entropies}
    if config.kl_placement == "loss":
        assert experience.ref_logprobs is not None
        terms["kl"] = kl_estimate(logprobs, experience.ref_logprobs, config.kl_loss_estimator)
    if values is not None:
        old_values, returns = experience.old_values, experience.returns
        assert old_values is not None
        assert returns is not None
        terms["value"] = value_loss(values, old_values, returns, value_clip=config.value_clip)
    if experience.response_mask.all():
        return terms
    zero = torch.zeros_like(logprobs)
    return {name: torch.where(experience.response_mask, t, zero) for name, t in terms.items()}


def update(
    learner: Learner, experience: Experience, config: Config, *, critic_only: bool = False
) -> Metrics:
    """Take one optimizer step on one minibatch.

        (1/N) sum w (policy + kl_loss_coef * kl - entropy_coef * entropy)    and    (1/n) sum value

    Weights w and N follow `ppo.loss_aggregation`, n counts actions. Both counts are over all ranks,
    so the gradient does not depend on how rows are split into micro-batches or over ranks. Without
    a critic there is no second part.

    Returns:
        Metrics, pooled over all ranks.

    Raises:
        NonFiniteError: on every rank, before a weight is changed.
    """
    ppo = config.ppo
    experience, local = weighted(experience, config)
    counts = torch.tensor([local, float(experience.response_mask.sum())], dtype=torch.float64)
    denominator, actions = floats(global_sum(counts).clamp(min=1.0))
    entropy: EntropyMode = "loss" if ppo.entropy_coef > 0 else "metric"
    metrics, losses = Metrics(), [0.0] * len(LOSSES)
    micro_batches = learner.micro_batches(experience)
    for number, micro in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        output = learner.forward(micro, entropy=entropy, last=last, critic_only=critic_only)
        if config.reuses_logprobs:  # these are the old ones: nothing has moved since the rollout
            micro = replace(micro, old_logprobs=output.logprobs.detach())
        terms = _terms(micro, output, ppo)
        assert micro.weights is not None
        value = terms.pop("value", None)
        parts = {name: (micro.weights * term).sum() / denominator for name, term in terms.items()}
        zero = output.logprobs.new_zeros(())
        parts["value"] = zero if value is None else value.sum() / actions
        parts["kl"] = ppo.kl_weight * parts["kl"] if "kl" in parts else zero
        objective = parts["policy"] + parts["kl"] - ppo.entropy_coef * parts["entropy"]
        learner.backward(None if critic_only else objective, parts["value"])
        parts["total"] = objective.detach() + ppo.value_weight * parts["value"].detach()
        micro_losses = floats(torch.stack([parts[name].detach() for name in LOSSES.values()]))
        losses = [total + part for total, part in zip(losses, micro_losses, strict=True)]
        metrics += describe_update(micro, output, config)
    metrics = global_metrics(metrics) | pooled_losses(dict(zip(LOSSES, losses, strict=True)), ppo)
    return metrics | learner.step(critic_only=critic_only)


def over_target_kl(metrics: Metrics, config: PPOConfig) -> bool:
    """Tell whether KL(old, new) <= target_kl is broken; a global figure, the same on every rank.

    The constraint of TRPO (arXiv:1502.05477), kept by stopping; there is no hidden factor.
    """
    if config.target_kl is None:
        return False
    return metrics.values().get("policy/approxkl_avg", 0.0) > config.target_kl


@phase("update")
def learn(learner: Learner, experience: Experience, config: Config, iteration: int) -> Metrics:
    """Run the epochs of one iteration, until `target_kl` is passed."""
    metrics = Metrics()
    critic_only = iteration < config.ppo.critic_warmup_iterations
    epoch = 0
    for epoch in range(config.ppo.num_epochs):
        seen = Metrics()
        for index in minibatches(experience, config, iteration, epoch):
            seen += update(learner, experience.rows(index), config, critic_only=critic_only)
        metrics += seen
        if over_target_kl(seen, config.ppo):
            break
    return metrics | Metrics.scalars({"policy/epochs": epoch + 1})


def train(
    collector: Collector, learner: Learner, config: Config, start: int = 0
) -> Iterator[Metrics]:
    """Collect and learn, iteration after iteration; yield the metrics of each.

    Args:
        collector: acts with the learner's weights.
        learner: holds policy and critic.
        config: `ppo`, `generation.max_new_tokens` and `run.seed` are read.
        start: first iteration, after a resume.

    Yields:
        Metrics, pooled over all ranks.
    """
    for iteration in range(start, config.ppo.num_iterations):
        began = time.perf_counter()
        learner.anneal(iteration / config.ppo.num_iterations)
        with learner.offloaded():
            rollout = collector.collect(learner, iteration)  # 1. act, with exactly these weights
        acted = time.perf_counter()
        experience = make_experience(rollout, config.ppo)  # 2. advantages
        collector.record(experience)
        metrics = describe(experience)
        prepared = time.perf_counter()
        metrics |= learn(learner, experience, config, iteration)  # 3. learn
        ended = time.perf_counter()
        seconds = {
            "timing_s/advantage": prepared - acted,
            "timing_s/update": ended - prepared,
            "timing_s/total": ended - began,
        }
        yield metrics | collector.metrics() | Metrics.scalars(seconds)
