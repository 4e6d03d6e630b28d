"""From what environments pay to what PPO is paid: one fixed order, one object with the memory.

    sum of weighted parts -> on_truncation -> clip -> scale, normalize -> missing end token
        -> placed on the last action of the turn -> - kl_coef * KL(policy || reference)

The sum is the environment's work. E episodes, B rows (those of an episode side by side), T actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from trainers.collect.episodes import Episodes, summed_by
from trainers.config.ppo import PPOConfig
from trainers.distributed.collectives import global_sum
from trainers.functional.kl import KLController

# Scores that differ by less than this are equal: their deviation is rounding, not a scale.
MIN_STD = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Unshaped:
    """Episodes, and what shaping asks of their environments.

    Attributes:
        episodes: what happened.
        out_of_tokens: [E] the last response was cut at its limit.
        single_turn: [E] the environment takes one response.
        scored_at_end: [E] a score is due at the end of the episode, and only there.
        unscored: [E] it was cut where no score was asked for.
    """

    episodes: Episodes
    out_of_tokens: Tensor
    single_turn: Tensor
    scored_at_end: Tensor
    unscored: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaped:
    """What PPO is paid, and how episodes end.

    Attributes:
        rewards: [B, T] float32 reward after each action, without the KL penalty.
        terminated: [B, T] True where the task ended, or counts as ended.
        boundary: [B, T] True on the last action of an episode.
        keep: [B] rows that stay in the loss.
        clipped: share of the turns, and of the spans that earned, that was clipped: (count, all).
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

    def shape(self, unshaped: Unshaped) -> Shaped:
        """Return the rewards of all steps but the KL penalty, and the flags `gae` reads.

        Statistics are of whole episodes, over valid rows of all ranks. A shift by the mean falls
        on the last turn, so that the turns of an episode add up to its normalized score.
        """
        episodes, mode = unshaped.episodes, self._modes(unshaped)
        owner = episodes.owner
        cut = episodes.truncated & ~episodes.terminated
        last = last_of_episodes(episodes.turn_ends, owner)
        paid = self._cut_rewards(unshaped, mode, cut)
        clipped = self.scale.clip(paid)
        scores = summed_by(owner, clipped, len(episodes.valid))
        shift, factor = self.scale.affine(scores[episodes.valid])
        rewards = (clipped - shift * last) * factor
        penalty = self._config.missing_eos_penalty or 0.0
        missing = unshaped.out_of_tokens & unshaped.single_turn
        rewards = rewards - penalty * (last & missing[owner, None])
        ended = episodes.terminated | _is(mode, "score", "penalty")
        left_out = cut & (_is(mode, "mask") | (_is(mode, "score") & unshaped.unscored))
        counted = (episodes.turn_ends | (paid != 0)) & episodes.valid[owner, None]
        return Shaped(
            rewards=rewards.float(),
            terminated=last & ended[owner, None],
            boundary=last,
            keep=(episodes.valid & ~left_out)[owner],
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

    def _modes(self, unshaped: Unshaped) -> list[str]:
        """Return `ppo.on_truncation` for each row, with auto decided."""
        mode, has_critic = self._config.on_truncation, self._config.has_critic
        if mode != "auto":
            return [mode] * len(unshaped.single_turn)
        scored = unshaped.single_turn | (not has_critic)
        return ["score" if score else "bootstrap" for score in scored.tolist()]

    def _cut_rewards(self, unshaped: Unshaped, mode: Sequence[str], cut: Tensor) -> Tensor:
        """Return rewards [B, T], those of the last turn of cut episodes changed.

        A state that bootstraps is worth its value: a final score on top would count it twice. What
        the environment itself paid for the turn stays.
        """
        episodes = unshaped.episodes
        owner, ends = episodes.owner, episodes.turn_ends
        last = last_of_episodes(ends, owner)
        # Spans of the last turn lie between the end of the turn before it and its own.
        turn = ends.cumsum(1) - ends.long()
        inside = last.any(1, keepdim=True) & (turn == ends.sum(1, keepdim=True) - 1)
        penalized = (cut & _is(mode, "penalty"))[owner, None]
        fixed = self._config.truncation_penalty * last.to(episodes.rewards.dtype)
        rewards = torch.where(inside & penalized, fixed, episodes.rewards)
        twice = (cut & _is(mode, "bootstrap") & unshaped.scored_at_end)[owner, None]
        return torch.where(inside & twice, episodes.env_rewards, rewards)


def last_true(mask: Tensor) -> Tensor:
    """Return [B, T] True only on the last True of each row of `mask` [B, T]."""
    behind = mask.flip(1).cumsum(1).flip(1)
    return mask & (behind == 1)


def last_of_episodes(turn_ends: Tensor, owner: Tensor) -> Tensor:
    """Return [B, T] True on the last action of each episode, whichever of its rows that is in."""
    rows = torch.arange(len(owner))
    acting = torch.where(turn_ends.any(1), rows, -1)
    final = torch.full_like(rows, -1).scatter_reduce(0, owner, acting, "amax")
    return last_true(turn_ends) & (rows == final[owner])[:, None]


def _is(modes: Sequence[str], *accepted: str) -> Tensor:
    return torch.tensor([mode in accepted for mode in modes], dtype=torch.bool)
