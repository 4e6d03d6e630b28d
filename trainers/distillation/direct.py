"""Distillation without a reward: the gradient of a divergence between teacher and student.

    loss = (1/N) sum w D(pi_T, pi_S)       over the response tokens of a minibatch

D is `jensen_shannon`. `distill.method gkd` follows it on what the student writes, `sft_kd` follows
KL(teacher || student) on what the teacher writes. Iterations, minibatches, rates and the
denominator are those of `ppo.py`. `train_directly` is a generator of metrics and does no I/O.

Source: Agarwal et al. 2023, arXiv:2306.13649, algorithm 1.
"""

import math
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from trainers.batch import Experience, Metrics
from trainers.collect.base import Actor, Collector
from trainers.config import Config
from trainers.distributed.collectives import global_metrics, global_sum, phase
from trainers.errors import LOWER_RATES, NonFiniteError
from trainers.functional.distillation import TeacherModel, direct_figures
from trainers.learner import Learner
from trainers.ppo import make_experience, minibatches, weighted

DIRECT_METRICS: tuple[str, ...] = (
    "distill/divergence",
    "distill/reverse_kl",
    "distill/forward_kl",
    "policy/entropy_avg",
)
"""What `direct_figures` returns of each token, as it is logged."""


def beta_of(config: Config) -> float:
    """Return the teacher's share of the mixture; 0 is KL(teacher || student)."""
    return 0.0 if config.distill.method == "sft_kd" else config.distill.beta


def _checked(loss: Tensor) -> float:
    """Return the loss [] summed over all ranks.

    Raises:
        NonFiniteError: on every rank, if it is not finite.
    """
    total = float(global_sum(loss.double()))
    if not math.isfinite(total):
        raise NonFiniteError(
            f"the divergence from the teacher is not finite ({total}); no weight was changed. "
            f"{LOWER_RATES}"
        )
    return total


def direct_update(
    learner: Learner, teacher: TeacherModel, experience: Experience, config: Config
) -> Metrics:
    """Take one optimizer step on one minibatch.

    Weights and N follow `ppo.loss_aggregation`; N is over all ranks, so the gradient does not
    depend on how rows are split into micro-batches or over ranks.

    Returns:
        Metrics, pooled over all ranks.

    Raises:
        NonFiniteError: on every rank, before a weight is changed.
    """
    experience, local = weighted(experience, config)
    denominator = global_sum(torch.tensor(local, dtype=torch.float64)).clamp(min=1.0)
    figures = partial(direct_figures, beta=beta_of(config))
    metrics, loss = Metrics(), torch.zeros(())
    micro_batches = learner.micro_batches(experience)
    for number, micro in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        made = learner.compared_with_gradient(micro, teacher, figures, last=last)
        assert micro.weights is not None
        part = (micro.weights * made[..., 0]).sum() / float(denominator)
        learner.backward(part, torch.zeros_like(part))
        loss = loss + part.detach().cpu()
        named = dict(zip(DIRECT_METRICS, made.detach().unbind(-1), strict=True))
        metrics += Metrics.masked(named, micro.response_mask)
    loss_metric = Metrics.scalars({"loss/distill": _checked(loss)})
    return global_metrics(metrics) | loss_metric | learner.step(critic_only=False)


@phase("update")
def _learn(
    learner: Learner,
    teacher: TeacherModel,
    experience: Experience,
    config: Config,
    iteration: int,
) -> Metrics:
    """Run the epochs of one iteration."""
    metrics = Metrics()
    for epoch in range(config.ppo.num_epochs):
        for index in minibatches(experience, config, iteration, epoch):
            metrics += direct_update(learner, teacher, experience.rows(index), config)
    return metrics | Metrics.scalars({"policy/epochs": config.ppo.num_epochs})


def train_directly(
    collector: Collector,
    writer: Actor,
    learner: Learner,
    teacher: TeacherModel,
    config: Config,
    start: int = 0,
) -> Iterator[Metrics]:
    """Collect and learn, iteration after iteration; yield the metrics of each.

    Args:
        collector: plays the environments.
        writer: writes what is learned from: the student, or the teacher.
        learner: holds the student.
        teacher: what it learns.
        config: `distill`, `ppo`, `generation.max_new_tokens` and `run.seed` are read.
        start: first iteration, after a resume.

    Yields:
        Metrics, pooled over all ranks.
    """
    for iteration in range(start, config.ppo.num_iterations):
        began = time.perf_counter()
        learner.anneal(iteration / config.ppo.num_iterations)
        with learner.offloaded():
            rollout = collector.collect(writer, iteration)
        experience = make_experience(rollout, config.ppo)
        collector.record(experience)
        acted = time.perf_counter()
        metrics = _learn(learner, teacher, experience, config, iteration)
        ended = time.perf_counter()
        seconds = {"timing_s/update": ended - acted, "timing_s/total": ended - began}
        yield metrics | collector.metrics() | Metrics.scalars(seconds)
