"""From what environments pay to what PPO is paid: one fixed order, one object with the memory.

    sum of weighted parts -> on_truncation -> clip -> scale, normalize -> missing end token
        -> placed on the last action of the turn -> - kl_coef * KL(policy || reference)

The sum is the environment's work. B rows, T actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from trainers.config_ppo import PPOConfig
from trainers.distributed import global_sum
from trainers.functional.kl import KLController

# Scores that differ by less than this are equal: their deviation is rounding, not a scale.
MIN_STD = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Unshaped:
    """Episodes, as far as their rewards are concerned.

    Attributes:
        turn_rewards: [B, T] what each turn earned, on its last action.
        turn_ends: [B, T] True on the last action of every turn.
        valid: [B] rows whose reward means something.
        terminated: [B] the task ended.
        truncated: [B] the episode was cut.
        out_of_tokens: [B] the last response was cut at its limit.
        single_turn: [B] the environment takes one response.
        scored_at_end: [B] a score is due at the end of the episode, and only there.
    """

    turn_rewards: Tensor
    turn_ends: Tensor
    valid: Tensor
    terminated: Tensor
    truncated: Tensor
    out_of_tokens: Tensor
    single_turn: Tensor
    scored_at_end: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaped:
    """What PPO is paid, and how episodes end.

    Attributes:
        rewards: [B, T] float32 reward after each action, without the KL penalty.
        terminated: [B, T] True where the task ended, or counts as ended.
        boundary: [B, T] True on the last action of a row.
        keep: [B] rows that stay in the loss.
        clipped: share of the turns that were clipped, as (count, turns).
    """

    rewards: Tensor
    terminated: Tensor
    boundary: Tensor
    keep: Tensor
    clipped: tuple[float, float]


@final
class RunningMoments:
    """Mean and population variance of every score so far, over all ranks.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances", eq. 2.1: Welford's update for a batch.
    """

    def __init__(self) -> None:
        self.count = self.mean = self.squares = 0.0

    @property
    def std(self) -> float:
        """Standard deviation; 0.0 for less than two scores."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0

    def update(self, scores: Tensor) -> None:
        """Take in scores [N] of this rank, and those of the other ranks; a collective."""
        count, total = global_sum(torch.stack([scores.new_tensor(len(scores)), scores.sum()]))
        if count == 0:
            return
        mean = total / count
        squares = float(global_sum((scores - mean).square().sum()))
        both = self.count + float(count)
        shift = float(mean) - self.mean
        self.squares += squares + shift**2 * self.count * float(count) / both
        self.mean += shift * float(count) / both
        self.count = both

    def state_dict(self) -> dict[str, float]:
        """Return count, mean and sum of squared deviations."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.count, self.mean = float(state["count"]), float(state["mean"])
        self.squares = float(state["squares"])


@final
class ScoreScale:
    """Clips, scales and normalizes scores; holds the running statistics."""

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        self._running = RunningMoments()

    @property
    def running_std(self) -> float:
        """Standard deviation of all scores so far."""
        return self._running.std

    def clip(self, rewards: Tensor) -> Tensor:
        """Return rewards [...] within +- `ppo.reward_clip`."""
        limit = self._config.reward_clip
        return rewards if limit is None else rewards.clamp(-limit, limit)

    def affine(self, scores: Tensor) -> tuple[float, float]:
        """Return (shift, factor) of this rollout: score -> (score - shift) * factor; a collective.

        Statistics take in the rollout's scores [N] first and then stay as they are for all of it.
        """
        scale, kind = self._config.reward_scale, self._config.reward_normalize
        if kind == "none":
            return 0.0, scale
        moments = self._running if kind == "running" else RunningMoments()
        moments.update(scores.double())
        std = moments.std if moments.std > MIN_STD else 1.0
        return (moments.mean if kind == "batch" else 0.0), scale / std

    def state_dict(self) -> dict[str, Any]:
        """Return the running statistics."""
        return self._running.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._running.load_state_dict(state)


@final
class RewardShaper:
    """Shapes the rewards of text, and owns what that remembers: statistics and KL controller."""

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        self.scale = ScoreScale(config)
        self.controller = KLController(config)

    def shape(self, episodes: Unshaped) -> Shaped:
        """Return the rewards of all steps but the KL penalty, and the flags `gae` reads.

        Statistics are of whole episodes, over valid rows of all ranks. A shift by the mean falls
        on the last turn, so that the turns of an episode add up to its normalized score.
        """
        mode = self._modes(episodes)
        cut = episodes.truncated & ~episodes.terminated
        last = last_true(episodes.turn_ends)
        paid = self._cut_rewards(episodes, mode, last & cut[:, None])
        clipped = self.scale.clip(paid)
        shift, factor = self.scale.affine(clipped.sum(1)[episodes.valid])
        rewards = (clipped - shift * last) * factor
        penalty = self._config.missing_eos_penalty or 0.0
        missing = episodes.out_of_tokens & episodes.single_turn
        rewards = rewards - penalty * (last & missing[:, None])
        ended = episodes.terminated | _is(mode, "score", "penalty")
        counted = episodes.turn_ends & episodes.valid[:, None]
        return Shaped(
            rewards=rewards.float(),
            terminated=last & ended[:, None],
            boundary=last,
            keep=episodes.valid & ~(cut & _is(mode, "mask")),
            clipped=(float((counted & (clipped != paid)).sum()), float(counted.sum())),
        )

    def penalize(self, rewards: Tensor, kl: Tensor) -> Tensor:
        """Return rewards [B, T] less `kl_coef` times the KL estimate [B, T] of each action."""
        return rewards - self.controller.coef * kl

    def state_dict(self) -> dict[str, Any]:
        """Return statistics and controller."""
        return {"scale": self.scale.state_dict(), "controller": self.controller.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scale.load_state_dict(state["scale"])
        self.controller.load_state_dict(state["controller"])

    def _modes(self, episodes: Unshaped) -> list[str]:
        """Return `ppo.on_truncation` for each row, with auto decided."""
        given = self._config.on_truncation
        single = episodes.single_turn.tolist()
        return [("score" if one else "bootstrap") if given == "auto" else given for one in single]

    def _cut_rewards(self, episodes: Unshaped, mode: Sequence[str], ends: Tensor) -> Tensor:
        """Return turn rewards [B, T], those of cut episodes changed on their last turn `ends`.

        A state that bootstraps is worth its value: a final score on top would count it twice.
        """
        rewards = episodes.turn_rewards
        fixed = torch.full_like(rewards, self._config.truncation_penalty)
        rewards = torch.where(ends & _is(mode, "penalty")[:, None], fixed, rewards)
        twice = _is(mode, "bootstrap") & episodes.scored_at_end
        return torch.where(ends & twice[:, None], torch.zeros_like(rewards), rewards)


def last_true(mask: Tensor) -> Tensor:
    """Return [B, T] True only on the last True of each row of `mask` [B, T]."""
    behind = mask.flip(1).cumsum(1).flip(1)
    return mask & (behind == 1)


def _is(modes: Sequence[str], *wanted: str) -> Tensor:
    return torch.tensor([mode in wanted for mode in modes], dtype=torch.bool)
