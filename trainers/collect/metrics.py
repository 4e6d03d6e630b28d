"""What a rollout looked like: metrics, pooled over all ranks, and rows for samples.jsonl.

Every mean is a sum divided once, by a count over all ranks. E episodes, B rows, T actions.
"""

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from trainers.batch import Metrics
from trainers.collect.episodes import Episodes, Slot
from trainers.collect.reward_shaping import Shaped
from trainers.config import Config
from trainers.config.ppo import PPOConfig
from trainers.distributed.collectives import World, gather, global_metrics, global_moments
from trainers.distributed.collectives import phase as named
from trainers.functional.kl import kl_estimate

ALL = "all"
"""Name of the episodes of all environments of a mixture together."""


@final
class Phases:
    """Seconds that each phase took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Add the time inside to `phase`."""
        began = time.perf_counter()
        try:
            with named(phase):
                yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count time as `target` that was measured as part of `source`."""
        self.seconds[source] -= seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A rollout with its metrics.

    Attributes:
        mask: [B, T] actions that stay in the loss.
        logprobs: [B, T] by the trainer's forward.
        ref_logprobs: [B, T], or None without a reference.
        env_ids: [E] name of each episode's environment.
        best: [E] the most an episode can earn, infinite where there is no such figure.
        kl_coef: weight of the KL penalty in this rollout.
        is_mixture: True where the run has several environments, on whatever rank.
    """

    episodes: Episodes
    shaped: Shaped
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor | None
    env_ids: Sequence[str]
    best: Sequence[float]
    kl_coef: float
    is_mixture: bool = False

    @property
    def kl(self) -> Tensor:
        """[E] k1 to the reference in nats per episode; 0 without a reference."""
        if self.ref_logprobs is None:
            return torch.zeros(len(self.episodes.slots))
        return self.episodes.per_episode((self.logprobs - self.ref_logprobs) * self.mask)

    @property
    def learned(self) -> Tensor:
        """[E] True where an episode has actions that stay in the loss."""
        return self.episodes.per_episode(self.mask) > 0


def text_metrics(
    outcome: Outcome,
    seconds: Mapping[str, float],
    config: Config,
    *,
    world: World,
    running_std: float,
) -> Metrics:
    """Return every figure of a text rollout, pooled over all ranks; a collective."""
    ppo = config.ppo
    tokens = float(outcome.episodes.sampled.sum())
    local = (
        _objective(outcome, ppo)
        | _completions(outcome.episodes.slots)
        | _environments(outcome)
        | performance(
            seconds,
            {"perf/tokens_per_s": tokens, "perf/samples_per_s": len(outcome.episodes.slots)},
            world=world,
        )
        | _padding(outcome)
    )
    is_exact = config.reuses_logprobs or config.distill.is_direct
    if not is_exact:  # else the update says it, or nothing depends on the trainer's own figures
        local |= _agreement(outcome)
    _, variance = global_moments(outcome.episodes.scores, outcome.episodes.valid)
    scalars = {"objective/scores_std": float(variance.sqrt())}
    scalars |= _parts(outcome.episodes.slots) | _counts(outcome)
    if ppo.reward_normalize == "running":
        scalars["rewards/running_std"] = running_std
    if ppo.reward_clip is not None:
        local |= Metrics(means={"rewards/clipped_frac": outcome.shaped.clipped})
    if ppo.kl_placement != "none":
        scalars["objective/kl_coef"] = (
            outcome.kl_coef if ppo.kl_placement == "reward" else ppo.kl_weight
        )
    return global_metrics(local) | Metrics.scalars(scalars)


def performance(
    seconds: Mapping[str, float], counts: Mapping[str, float], *, world: World
) -> Metrics:
    """Return times, rates and the peak memory of a rank, not yet pooled.

    Args:
        seconds: this rank's, by phase.
        counts: what this rank has done in that time, by the name of its rate.
        world: this process among its peers.
    """
    # Sums over ranks are divided by the mean time of a rank.
    total = sum(seconds.values()) / world.size
    means = {f"timing_s/{phase}": (spent, 1.0) for phase, spent in seconds.items()}
    means |= {name: (float(count), total) for name, count in counts.items()}
    peaks = {"perf/cpu_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available():
        peaks["perf/gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return Metrics(means=means, maxima=peaks)


def sample_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return one row for samples.jsonl for each episode; the advantage comes later."""
    kl = outcome.kl.tolist()
    return [
        {
            "env": env,
            "prompt": _dialogue(slot),
            "completion": "\n\n".join(slot.completions),
            "reward": sum(slot.rewards),
            **slot.parts,
            "kl": kl[row],
            "length": len(slot.actions),
            "finish_reason": slot.finish_reason,
            "stop_reason": slot.stop_reason,
            "score_ms": slot.score_ms,
            "advantage": None,
            "policy_version": slot.policy_version,
        }
        for row, (env, slot) in enumerate(zip(outcome.env_ids, outcome.episodes.slots, strict=True))
    ]


def _dialogue(slot: Slot) -> str:
    opening = slot.opening
    if len(opening) == 1:
        return str(opening[0]["content"])
    return "\n\n".join(f"[{message['role']}] {message['content']}" for message in opening)


def _objective(outcome: Outcome, ppo: PPOConfig) -> Metrics:
    """Return scores, KL and entropy; episodes whose reward failed are left out."""
    valid, mask = outcome.episodes.valid, outcome.mask
    rows, actions = float(outcome.learned.sum()), float(mask.sum())
    scores = float(outcome.episodes.scores[valid].sum())
    entropy = -float((outcome.logprobs.double() * mask).sum())
    means = {
        "objective/scores": (scores, float(valid.sum())),
        "objective/entropy": (entropy, rows),
    }
    if outcome.ref_logprobs is not None:
        kl = float(outcome.kl.double().sum())
        means["objective/kl"] = (kl, rows)
        means["objective/kl_per_token"] = (kl, actions)
        if ppo.kl_placement == "reward":
            counted = float(outcome.episodes.scores[outcome.learned].sum())
            taken = kl_estimate(outcome.logprobs, outcome.ref_logprobs, ppo.kl_estimator)
            paid = -outcome.kl_coef * float(taken.double()[mask].sum())
            means["objective/non_score_reward"] = (paid, rows)
            means["objective/rlhf_reward"] = (counted + paid, rows)
    return Metrics(means=means)


def _agreement(outcome: Outcome) -> Metrics:
    """Return how far the sampler's log-probabilities are from the trainer's."""
    mask = outcome.mask
    apart = (outcome.logprobs - outcome.episodes.generator_logprobs).abs().double()[mask]
    means = {"policy/generator_logp_diff": (float(apart.sum()), float(mask.sum()))}
    largest = {"policy/generator_logp_diff_max": float(apart.max())} if len(apart) else {}
    return Metrics(means=means, maxima=largest)


def _completions(slots: Sequence[Slot]) -> Metrics:
    played = [slot for slot in slots if not slot.too_long]
    lengths = [len(slot.actions) for slot in played]
    cut = sum(slot.finish_reason == "length" for slot in played)
    ended = sum(slot.finish_reason == "stop" for slot in played)
    unknown = sum(slot.unknown for slot in played)
    pairs = [_distinct(slot, 2) for slot in played]
    fours = [_distinct(slot, 4) for slot in played]
    count = float(len(played))
    means = {
        "completions/mean_length": (float(sum(lengths)), count),
        "completions/clipped_ratio": (float(cut), count),
        "completions/eos_ratio": (float(ended), count),
        "completions/unknown_ratio": (float(unknown), float(sum(lengths))),
        "completions/distinct_2": (_total(pairs, 0), _total(pairs, 1)),
        "completions/repeat_4gram": (_total(fours, 1) - _total(fours, 0), _total(fours, 1)),
    }
    if not lengths:
        return Metrics(means=means)
    return Metrics(
        means=means,
        maxima={"completions/max_length": float(max(lengths))},
        minima={"completions/min_length": float(min(lengths))},
    )


def _distinct(slot: Slot, n: int) -> tuple[int, int]:
    """Return (different, all) runs of n sampled tokens of an episode."""
    tokens = slot.actions
    runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(runs)), len(runs)


def _total(pairs: Sequence[tuple[int, int]], place: int) -> float:
    return float(sum(pair[place] for pair in pairs))


def _environments(outcome: Outcome) -> Metrics:
    """Return reward, turns, success and endings of each environment."""
    metrics = Metrics()
    for env, best, slot in zip(outcome.env_ids, outcome.best, outcome.episodes.slots, strict=True):
        for name in (env, ALL) if outcome.is_mixture else (env,):
            metrics += _episode(name, best, slot) if slot.valid else Metrics()
    return metrics


def _episode(env: str, best: float, slot: Slot) -> Metrics:
    reward = sum(slot.rewards)
    figures = {
        f"env/{env}/reward": reward,
        f"env/{env}/length": float(len(slot.rewards)),
        f"env/{env}/terminated_frac": float(slot.terminated),
        f"env/{env}/truncated_frac": float(slot.truncated),
    }
    if best < float("inf"):
        figures[f"env/{env}/success"] = float(reward >= best - 1e-6)
    return Metrics.scalars(figures)


def _counts(outcome: Outcome) -> dict[str, float]:
    """Return failed and repeated rewards, dropped prompts, over all ranks; a collective."""
    counts: dict[str, float] = {"rewards/errors": 0.0, "rewards/retries": 0.0}
    for env, slot in zip(outcome.env_ids, outcome.episodes.slots, strict=True):
        name = f"env/{env}/truncated_prompts"
        counts[name] = counts.get(name, 0.0) + bool(slot.too_long)
        counts["rewards/errors"] += not (slot.valid or slot.too_long)
        counts["rewards/retries"] += slot.retries
    total: dict[str, float] = {}
    for part in gather(counts):
        for name, count in part.items():
            total[name] = total.get(name, 0.0) + count
    return total


def _parts(slots: Sequence[Slot]) -> dict[str, float]:
    """Return mean and deviation of each named part of the reward; a collective."""
    names = sorted(set().union(*gather({name for slot in slots for name in slot.parts})))
    figures: dict[str, float] = {}
    for name in names:
        have = torch.tensor([slot.valid and name in slot.parts for slot in slots])
        values = torch.tensor([slot.parts.get(name, 0.0) for slot in slots], dtype=torch.float64)
        mean, variance = global_moments(values, have)
        figures[f"rewards/{name}/mean"] = float(mean)
        figures[f"rewards/{name}/std"] = float(variance.sqrt())
    return figures


def _padding(outcome: Outcome) -> Metrics:
    mask = outcome.episodes.inputs.attention_mask
    return Metrics(means={"perf/padding_frac": (float((~mask).sum()), float(mask.numel()))})
