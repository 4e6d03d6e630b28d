"""Text rollouts: environments times the policy, one turn of every slot at a time.

E episodes, B rows (those of an episode side by side), T actions, L = P + T.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any, cast, final

import torch
from torch import Tensor

from llmgym.env import SingleTurnEnv, inner_env
from llmgym.messages import StopReason
from trainers.batch import Experience, Metrics, Rollout, TextInputs
from trainers.collect.base import Actor, Collector, Student
from trainers.collect.episodes import Episodes, summed_by
from trainers.collect.metrics import Outcome, sample_rows, text_metrics
from trainers.collect.reward_shaping import RewardShaper, Unshaped, last_true
from trainers.collect.rollout_checks import check_error_rate, check_mismatch
from trainers.collect.rollout_writer import RolloutWriter, TextParts, WrittenRollout
from trainers.collect.teaching import lesson_of, teacher_metrics
from trainers.config import Config
from trainers.distributed.collectives import World, global_metrics, global_sum
from trainers.functional.distillation import TeacherComparison
from trainers.functional.kl import kl_estimate


@final
class TextCollector(Collector):
    """Plays the text environments of a run with the learner's current weights.

    Args:
        parts: environments, generator, chat format, sampler, reference.
        config: of the run.
        world: this process among its peers.
    """

    def __init__(self, parts: TextParts, config: Config, world: World) -> None:
        self._parts = parts
        self._config = config
        self._world = world
        self._shaper = RewardShaper(config.ppo)
        self._writer = RolloutWriter(parts, config, world)
        self._env_ids = list(parts.env_names) or [config.env.label] * parts.envs.num_envs
        self._totals = {"episodes": 0, "tokens": 0}
        self._metrics = Metrics()
        self._samples: list[dict[str, Any]] = []

    def collect(self, actor: Actor, iteration: int) -> Rollout:
        """Return this rank's part of an iteration's episodes.

        Raises:
            RewardError: on every rank, when too many rewards failed.
            GenerationError: the generator's weights are not the actor's.
            Exception: what a rollout that was written ahead raised.
        """
        written = self._writer.write(actor, iteration)
        episodes, phases = written.episodes, written.phases
        check_error_rate(episodes, self._config.ppo.max_error_rate)
        shaped = self._shaper.shape(self._unshaped(episodes))
        mask = episodes.sampled & shaped.keep[:, None]
        reference = self._parts.reference
        with phases.of("logprobs"):
            comparison = self._compared(actor, episodes, mask)
            logprobs = comparison.logprobs if comparison else self._logprobs(actor, written, mask)
            if not self._parts.generator.exact:
                check_mismatch(
                    logprobs, episodes.generator_logprobs, mask, self._config.generation.tolerance
                )
            ref = None if reference is None else reference.logprobs(episodes.inputs, mask)
        with phases.of("values"):
            inputs = self._read_by_critic(episodes, logprobs)
            values = actor.values(inputs)
        outcome = Outcome(
            episodes=episodes,
            shaped=shaped,
            mask=mask,
            logprobs=logprobs,
            ref_logprobs=ref,
            env_ids=self._env_ids,
            best=[inner_env(env).reward_bounds[1] for env in self._parts.envs.envs],
            kl_coef=self._shaper.controller.coef,
            is_mixture=len(self._config.envs) > 1,
        )
        rollout = self._rollout(outcome, inputs, values)
        self._note(outcome, written, lag=actor.policy_version - written.version)
        return rollout if comparison is None else self._taught(rollout, comparison)

    def record(self, experience: Experience) -> None:
        """Take note of each episode's mean advantage, for the samples shown."""
        mask, count = experience.response_mask, len(self._samples)
        owner = experience.index.unique(return_inverse=True)[1]
        totals = summed_by(owner, experience.advantages * mask, count)
        means = totals / summed_by(owner, mask, count).clamp(min=1)
        for row, mean in zip(self._samples, means.tolist(), strict=True):
            row["advantage"] = mean

    def metrics(self) -> Metrics:
        """Return the figures of the last rollout, pooled over all ranks."""
        return self._metrics

    def samples(self) -> list[dict[str, Any]]:
        """Return the last rollout's rows, this rank's, as written to samples.jsonl."""
        return self._samples

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the tasks, the memory of rewards and shaper, and the totals.

        A rollout that is written ahead is in none of it: after a resume it is written anew.
        """
        mine = {"shaper": self._shaper.state_dict(), "totals": self._totals}
        return {**self._writer.state_dict(), **deepcopy(mine)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._writer.load_state_dict(state)
        self._shaper.load_state_dict(state["shaper"])
        self._totals = dict(state["totals"])

    def close(self) -> None:
        """Close the environments."""
        self._parts.envs.close()

    def sync(self, actor: Actor) -> None:
        """Give the generator the actor's weights; waits for what is written ahead."""
        self._writer.sync(actor)

    def stop(self) -> None:
        """Drop a rollout that is written ahead; the last call but `close`."""
        self._writer.stop()

    def _unshaped(self, episodes: Episodes) -> Unshaped:
        envs = [env.unwrapped for env in self._parts.envs.envs]
        pairs = list(zip(episodes.slots, envs, strict=True))
        at_end = torch.tensor([_scores_at_end(env) for env in envs])
        stopped = [slot.stop_reason == StopReason.CONTEXT for slot in episodes.slots]
        return Unshaped(
            episodes=episodes,
            out_of_tokens=torch.tensor([slot.finish_reason == "length" for slot, _ in pairs]),
            single_turn=torch.tensor([isinstance(env, SingleTurnEnv) for env in envs]),
            scored_at_end=at_end,
            unscored=at_end & torch.tensor(stopped),
        )

    def _logprobs(self, actor: Actor, written: WrittenRollout, mask: Tensor) -> Tensor:
        """Return [B, T] by the trainer's forward, unless nothing depends on that pass."""
        if written.logprobs is not None:
            return torch.where(mask, written.logprobs, 0.0)
        episodes, config, exact = written.episodes, self._config, self._parts.generator.exact
        if config.distill.is_direct:
            return episodes.generator_logprobs * mask
        if config.reuses_logprobs and config.ppo.kl_placement != "reward" and exact:
            return episodes.generator_logprobs * mask
        return actor.logprobs(episodes.inputs, mask)

    def _compared(self, actor: Actor, episodes: Episodes, mask: Tensor) -> TeacherComparison | None:
        """Compare policy and teacher at the actions, in one pass of both; None without one."""
        if self._parts.teacher is None:
            return None
        clip = self._config.distill.clip
        student = cast(Student, actor)
        return student.compared(self._parts.teacher, episodes.inputs, mask, clip=clip)

    def _taught(self, rollout: Rollout, comparison: TeacherComparison) -> Rollout:
        """Add what the teacher pays, and its metrics."""
        settings, mask = self._config.distill, rollout.response_mask
        self._metrics |= global_metrics(teacher_metrics(comparison, mask, settings))
        lesson = lesson_of(comparison, mask, settings)
        return replace(rollout, teacher_rewards=lesson.rewards, teacher_values=lesson.values)

    def _read_by_critic(self, episodes: Episodes, logprobs: Tensor) -> TextInputs:
        """Return the rows, with their log-probabilities [B, T] where the critic reads them."""
        reads = self._config.ppo.critic_reads_logprobs
        return replace(episodes.inputs, logprobs=logprobs) if reads else episodes.inputs

    def _rollout(self, outcome: Outcome, inputs: TextInputs, values: Tensor | None) -> Rollout:
        """Put the rollout together, and let the controller see its KL afterwards."""
        episodes, mask, ref = outcome.episodes, outcome.mask, outcome.ref_logprobs
        rewards = outcome.shaped.rewards
        if ref is not None and self._config.ppo.kl_placement == "reward":
            kl = kl_estimate(outcome.logprobs, ref, self._config.ppo.kl_estimator)
            rewards = self._shaper.penalize(rewards, kl * mask)
            total = global_sum(torch.stack([outcome.kl.sum().double(), outcome.learned.sum()]))
            count = int(total[1])
            self._shaper.controller.update(float(total[0]) / max(count, 1), count)
        return Rollout(
            inputs=inputs,
            response_mask=mask,
            logprobs=outcome.logprobs,
            generator_logprobs=episodes.generator_logprobs * mask,
            ref_logprobs=ref,
            rewards=rewards * mask,
            values=None if values is None else values[:, :-1],
            next_values=None if values is None else next_values(values, episodes),
            terminated=outcome.shaped.terminated,
            boundary=outcome.shaped.boundary,
            index=episodes.index,
        )

    def _note(self, outcome: Outcome, written: WrittenRollout, *, lag: int) -> None:
        counts = torch.stack([outcome.episodes.valid.sum(), outcome.episodes.sampled.sum()])
        episodes, tokens = global_sum(counts).tolist()
        self._totals["episodes"] += episodes
        self._totals["tokens"] += tokens
        self._metrics = text_metrics(
            outcome,
            written.phases.seconds,
            self._config,
            world=self._world,
            running_std=self._shaper.scale.running_std,
        ) | Metrics.scalars(
            {
                "train/episodes": self._totals["episodes"],
                "train/tokens": self._totals["tokens"],
            }
        )
        self._metrics |= Metrics.scalars(
            {f"env/{name}/level": float(level) for name, level in written.levels.items()}
        )
        if self._parts.copy is not None:
            figures = {"policy/version_lag": lag, "timing_s/wait": self._writer.waited}
            self._metrics |= Metrics.scalars(figures)
        self._samples = sample_rows(outcome)


def next_values(values: Tensor, episodes: Episodes) -> Tensor:
    """Return [B, T] the value of the state in which the next action of the episode is taken.

        sampled  1 1 0 0 1 .        values [B, T + 1] stand *before* tokens:
        values   0 1 2 3 4 5        next of token 0: 1, of token 1: 4 (the turn's observation is
        next     1 4 . . 5 .        read first), of token 4, the last one: 5, behind the row's end,
                                    or the first value of the next row, where the episode has one

    Args:
        values: [B, T + 1] the critic at every position.
        episodes: which tokens are actions, and which row goes on with which.
    """
    sampled, owner = episodes.sampled, episodes.owner
    end = episodes.inputs.sizes[:, 1:]
    here = torch.where(sampled, torch.arange(sampled.shape[1]), end)
    ahead = torch.cat([here[:, 1:], end], 1).flip(1).cummin(1).values.flip(1)
    goes_on = torch.cat([owner[1:] == owner[:-1], torch.tensor([False])])
    leaves = last_true(sampled) & goes_on[:, None]
    return torch.where(leaves, values.roll(-1, 0)[:, :1], values.gather(1, ahead))


def _scores_at_end(env: Any) -> bool:  # noqa: ANN401 - the unwrapped environment of a slot
    return env.reward is not None and not env.reward.per_turn
