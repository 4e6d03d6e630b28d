"""Control rollouts: classic Gymnasium environments times an actor-critic MLP.

Without a critic an iteration is one whole episode of every environment, and those of a group begin
with the same seed, so that they are compared from the same start.

B environments, T steps, A dimensions of an action.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import gymnasium
import numpy as np
import torch
from torch import Tensor

from llmgym.errors import EnvTimeoutError
from llmgym.limits import CallLimit, LateCall, within
from trainers.batch import ControlInputs, Experience, Metrics, Rollout
from trainers.collect.action_limits import LimitsRecording, stacked_limits
from trainers.collect.base import Actor, Collector
from trainers.collect.env_slots import Ended, EnvSlot, EpisodeLog, Recording, Step, by_row
from trainers.collect.metrics import Phases, performance
from trainers.collect.reward_shaping import ScoreScale
from trainers.config import Config
from trainers.distributed.collectives import (
    World,
    gather,
    global_metrics,
    global_moments,
    global_sum,
)
from trainers.generation.sampling import uniforms
from trainers.models.mlp import PolicyMLP, SharedMLP


@final
class ControlCollector(Collector):
    """Steps this rank's environments with the learner's current policy.

    Args:
        envs: this rank's share of `ppo.num_prompts` environments, times `ppo.group_size`.
        config: of the run.
        world: this process among its peers.

    Attributes:
        limit: of the time that one step of all environments may take.
    """

    def __init__(self, envs: Sequence[gymnasium.Env], config: Config, world: World) -> None:
        self._config = config
        self._world = world
        self.limit = CallLimit(config.env.timeout_seconds)
        size, starts = config.ppo.group_size, world.share(config.ppo.num_prompts)
        self._numbers = range(starts.start * size, starts.stop * size)
        pairs = zip(envs, self._numbers, strict=True)
        self._slots = [EnvSlot(env, number // size, config.run.seed) for env, number in pairs]
        self._scale = ScoreScale(config.ppo)
        self._totals = {"episodes": 0}
        self._logs = [EpisodeLog() for _ in range(config.ppo.num_prompts * size)]
        self._gather_logs()
        self._metrics = Metrics()

    def collect(self, actor: Actor, iteration: int) -> Rollout:
        """Return `ppo.num_steps` steps of each of this rank's environments; or an episode of each.

        Raises:
            EnvTimeoutError: an environment hangs.
        """
        phases = Phases()
        with phases.of("rollout"):
            inputs, played = self._play(actor, iteration)
            mask = by_row(played.taken)
        with phases.of("logprobs"):
            logprobs = actor.logprobs(inputs, mask)
        with phases.of("values"):
            values = actor.values(inputs)
            next_values = (
                None if values is None else actor.values(replace(inputs, obs=played.next_obs))
            )
        terminated, truncated = played.terminated, played.truncated
        boundary = terminated | truncated
        boundary[:, -1] = True
        rewards = played.rewards
        mode, cut = self._config.ppo.on_truncation, truncated & ~terminated
        if mode == "penalty":
            rewards = torch.where(cut, self._config.ppo.truncation_penalty, rewards)
        self._note(phases, played, logprobs)
        return Rollout(
            inputs=inputs,
            response_mask=mask,
            logprobs=logprobs,
            rewards=self._shaped(rewards, mask),
            values=values,
            next_values=next_values,
            terminated=terminated | (cut & (mode in ("score", "penalty"))),
            boundary=boundary,
            index=torch.tensor(list(self._numbers)),
        )

    def record(self, experience: Experience) -> None:
        """Take no note: there are no samples to show."""

    def metrics(self) -> Metrics:
        """Return the figures of the last rollout, pooled over all ranks."""
        return self._metrics

    def samples(self) -> list[dict[str, Any]]:
        """Return nothing: steps are not shown."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return every environment's state, of all ranks, the statistics and the totals."""
        return {
            "slots": [log.state_dict() for log in self._logs],
            "scale": self._scale.state_dict(),
            "totals": dict(self._totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, at this or another number of ranks."""
        for number, slot in zip(self._numbers, self._slots, strict=True):
            slot.load_state_dict(state["slots"][number])
        self._logs = [EpisodeLog() for _ in self._logs]
        for log, saved in zip(self._logs, state["slots"], strict=True):
            log.add(saved)
        self._scale.load_state_dict(state["scale"])
        self._totals = dict(state["totals"])

    def close(self) -> None:
        """Close the environments."""
        for slot in self._slots:
            slot.close()

    def _play(self, actor: Actor, iteration: int) -> tuple[ControlInputs, Recording]:
        """Act until the rollout is full, or every episode of one without a critic is over."""
        policy, num_steps = actor.policy_module, self._config.ppo.num_steps
        assert isinstance(policy, PolicyMLP | SharedMLP), "control acts with an MLP"
        act, device = policy.acting(), next(policy.parameters()).device
        dims = policy.head.num_uniforms
        numbers = torch.tensor(list(self._numbers))
        drawn = uniforms(
            self._config.run.seed, iteration, numbers[:, None], torch.arange(num_steps * dims)
        )
        played = Recording(self._slots, num_steps)
        actions: list[Tensor] = []
        limits = LimitsRecording()
        live = [True] * len(self._slots)
        for t, u in enumerate(drawn.to(device).split(dims, 1)):
            played.obs[t] = [slot.obs for slot in self._slots]
            played.taken[t] = live
            step_limits = stacked_limits([slot.limits for slot in self._slots])
            limits.add(step_limits)
            there = [None if value is None else value.to(device) for value in step_limits]
            action = act(torch.from_numpy(played.obs[t]).to(device), u, *there).cpu()
            actions.append(action)
            steps = self._step(action.numpy(), live)
            played.add(t, steps)
            if not self._config.ppo.has_critic:  # one episode an iteration
                live = [now and end is None for now, (_, end) in zip(live, steps, strict=True)]
                if not any(live):
                    break
        if not self._config.ppo.has_critic:
            for number in (number for number, is_live in enumerate(live) if is_live):
                played.cut(number, self._slots[number].end(terminated=False))
        actions += actions[-1:] * (num_steps - len(actions))  # any that is one, where none is taken
        mask, prior = limits.columns(num_steps)
        inputs = ControlInputs(
            obs=by_row(played.obs),
            actions=torch.stack(actions, 1),
            action_mask=mask,
            action_prior=prior,
        )
        return inputs, played

    def _step(self, actions: np.ndarray, live: Sequence[bool]) -> list[tuple[Step, Ended | None]]:
        """Act in every live environment, in turn.

        Raises:
            EnvTimeoutError: together they take longer than `envs.0.timeout_seconds`.
        """
        try:
            return within(
                self.limit,
                lambda: [
                    slot.step(action) if is_live else (slot.waiting(), None)
                    for slot, action, is_live in zip(self._slots, actions, live, strict=True)
                ],
            )
        except LateCall as late:
            raise EnvTimeoutError(f"{self._config.env.id}: {late}") from None

    def _shaped(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """Return rewards [B, T] clipped, scaled and normalized; every step's is a score.

        Args:
            rewards: [B, T] after each step.
            mask: [B, T] True on steps that were taken.
        """
        clipped = self._scale.clip(rewards)
        shift, factor = self._scale.affine(clipped[mask])
        return ((clipped - shift) * factor * mask).float()

    def _note(self, phases: Phases, played: Recording, logprobs: Tensor) -> None:
        ended = played.ended
        self._totals["episodes"] += int(global_sum(torch.tensor(len(ended))))
        scores = torch.tensor([episode.reward for episode in ended], dtype=torch.float64)
        _, variance = global_moments(scores, torch.ones_like(scores, dtype=torch.bool))
        count, env = float(len(ended)), self._config.env.label
        total = float(scores.sum())
        terminated = float(sum(episode.terminated for episode in ended))
        means = {
            "objective/scores": (total, count),
            "objective/entropy": (self._entropy_of_ended(logprobs, played), count),
            f"env/{env}/reward": (total, count),
            f"env/{env}/length": (float(sum(episode.length for episode in ended)), count),
            f"env/{env}/terminated_frac": (terminated, count),
            f"env/{env}/truncated_frac": (count - terminated, count),
        }
        rates = {"perf/steps_per_s": int(played.taken.sum()), "perf/samples_per_s": count}
        local = Metrics(means=means) | performance(phases.seconds, rates, world=self._world)
        self._gather_logs()
        scalars = {"train/episodes": float(self._totals["episodes"])}
        if self._totals["episodes"]:
            scalars["objective/scores_std"] = float(variance.sqrt())
        if self._config.ppo.reward_normalize == "running":
            scalars["rewards/running_std"] = self._scale.running_std
        self._metrics = global_metrics(local) | Metrics.scalars(scalars)

    def _entropy_of_ended(self, logprobs: Tensor, played: Recording) -> float:
        """Return -sum log p over the actions of the episodes that ended, in nats.

        What an episode that goes on has gathered so far stays with its environment.

        Args:
            logprobs: [B, T] of the actions.
            played: what each environment answered.
        """
        total, ends = 0.0, played.terminated | played.truncated
        rows = zip(self._slots, ends.tolist(), (-logprobs).tolist(), strict=True)
        for slot, over, entropies in rows:
            for is_last, nats in zip(over, entropies, strict=True):
                slot.nats += nats
                if is_last:
                    total, slot.nats = total + slot.nats, 0.0
        return total

    def _gather_logs(self) -> None:
        """Add what every environment of all ranks did since the last call; a collective."""
        news = zip(self._numbers, (slot.news() for slot in self._slots), strict=True)
        for part in gather(list(news)):
            for number, state in part:
                self._logs[number].add(state)
