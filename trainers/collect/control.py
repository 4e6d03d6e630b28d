"""Control rollouts: classic Gymnasium environments times an actor-critic MLP.

Every episode is reset with a seed of its own, made of (run seed, environment, episode number), so
an environment in the middle of an episode is known by that number and the actions since: a resume
plays them again and stands where it stood, bit for bit.

Without a critic an iteration is one whole episode of every environment, and those of a group begin
with the same seed, so that they are compared from the same start.

B environments, T steps, A dimensions of an action.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, final

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import FlattenObservation
from torch import Tensor

from llmgym.errors import EnvTimeoutError
from llmgym.limits import CallLimit, LateCall, within
from trainers.batch import ControlInputs, Experience, Metrics, Rollout
from trainers.collect.base import Actor, Collector
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


class Step(NamedTuple):
    """What an environment answered; `obs` is the true last one where the episode is over."""

    obs: np.ndarray
    reward: float
    terminated: bool
    truncated: bool


class Ended(NamedTuple):
    """A finished episode: the sum of its rewards, its steps, and how it ended."""

    reward: float
    length: int
    terminated: bool


def make_envs(make: Callable[[], gymnasium.Env], count: int) -> list[gymnasium.Env]:
    """Return `count` environments whose observations are boxes of numbers."""
    envs = [make() for _ in range(count)]
    boxed = isinstance(envs[0].observation_space, Box)
    return envs if boxed else [FlattenObservation(env) for env in envs]


def next_inputs(inputs: ControlInputs, steps: Sequence[Sequence[Step]]) -> ControlInputs:
    """Return inputs with the observations [B, T, ...] that followed their actions."""
    obs = np.stack([np.stack([step.obs for step in row]) for row in steps])
    return replace(inputs, obs=torch.from_numpy(obs))


@final
class EnvSlot:
    """One environment in the middle of an episode.

    Args:
        env: with a time limit of its own, if it has any.
        number: of the start, counted over all ranks; environments of a group share it.
        seed: of the run.

    Attributes:
        nats: minus the log-probability of the episode's actions so far; kept by the collector.
    """

    def __init__(self, env: gymnasium.Env, number: int, seed: int) -> None:
        self._env = env
        self._key = (seed, number)
        self._episode = -1
        self._actions: list[Any] = []
        self._reward = 0.0
        self.nats = 0.0
        self.obs = self.begin()

    def begin(self) -> np.ndarray:
        """Begin the next episode and return its first observation."""
        self._episode += 1
        self._actions, self._reward = [], 0.0
        seed = np.random.SeedSequence((*self._key, self._episode)).generate_state(1)[0]
        obs, _ = self._env.reset(seed=int(seed))
        self.obs = np.array(obs, dtype=np.float32)
        return self.obs

    def step(self, action: np.ndarray) -> tuple[Step, Ended | None]:
        """Act, and begin the next episode where this one is over."""
        space = self._env.action_space
        if isinstance(space, Box):
            taken: Any = np.clip(action, space.low, space.high).astype(space.dtype)
        else:
            taken = int(action)
        self._actions.append(taken.tolist() if isinstance(space, Box) else taken)
        obs, reward, terminated, truncated, _ = self._env.step(taken)
        self._reward += float(reward)
        self.obs = np.array(obs, dtype=np.float32)
        step = Step(self.obs, float(reward), bool(terminated), bool(truncated))
        if not (terminated or truncated):
            return step, None
        return step, self.end(terminated=bool(terminated))

    def end(self, *, terminated: bool) -> Ended:
        """Begin the next episode; return what became of this one."""
        ended = Ended(self._reward, len(self._actions), terminated)
        self.begin()
        return ended

    def waiting(self) -> Step:
        """Return the step that fills rows after the end of an episode."""
        return Step(self.obs, 0.0, terminated=True, truncated=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the episode, the actions taken in it and their nats."""
        return {"episode": self._episode, "actions": list(self._actions), "nats": self.nats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the episode again up to where it stood."""
        self._episode = int(state["episode"]) - 1
        self.begin()
        for action in state["actions"]:
            _, ended = self.step(np.asarray(action))
            assert ended is None, "the environment does not repeat itself for equal seeds"
        self.nats = float(state["nats"])

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


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
        self._all_slots = self._gathered()
        self._metrics = Metrics()

    def collect(self, actor: Actor, iteration: int) -> Rollout:
        """Return `ppo.num_steps` steps of each of this rank's environments; or an episode of each.

        Raises:
            EnvTimeoutError: an environment hangs.
        """
        phases = Phases()
        with phases.of("rollout"):
            inputs, mask, steps, ended = self._play(actor, iteration)
        with phases.of("logprobs"):
            logprobs = actor.logprobs(inputs, mask)
        with phases.of("values"):
            values = actor.values(inputs)
            next_values = None if values is None else actor.values(next_inputs(inputs, steps))
        terminated = torch.tensor([[step.terminated for step in row] for row in steps])
        truncated = torch.tensor([[step.truncated for step in row] for row in steps])
        boundary = terminated | truncated
        boundary[:, -1] = True
        rewards = torch.tensor([[step.reward for step in row] for row in steps]).double()
        mode, cut = self._config.ppo.on_truncation, truncated & ~terminated
        if mode == "penalty":
            rewards = torch.where(cut, self._config.ppo.truncation_penalty, rewards)
        self._note(phases, ended, logprobs, mask, steps)
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
            "slots": self._all_slots,
            "scale": self._scale.state_dict(),
            "totals": dict(self._totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, at this or another number of ranks."""
        for number, slot in zip(self._numbers, self._slots, strict=True):
            slot.load_state_dict(state["slots"][number])
        self._all_slots = state["slots"]
        self._scale.load_state_dict(state["scale"])
        self._totals = dict(state["totals"])

    def close(self) -> None:
        """Close the environments."""
        for slot in self._slots:
            slot.close()

    def _play(
        self, actor: Actor, iteration: int
    ) -> tuple[ControlInputs, Tensor, list[list[Step]], list[Ended]]:
        """Return inputs, which steps were taken [B, T], what environments answered, the endings."""
        policy = actor.policy_module
        assert isinstance(policy, PolicyMLP | SharedMLP), "control acts with an MLP"
        device = next(policy.parameters()).device
        numbers = torch.tensor(list(self._numbers))[:, None]
        dims = torch.arange(policy.head.num_uniforms)
        obs, actions, ended, taken = [], [], [], []
        steps: list[list[Step]] = [[] for _ in self._slots]
        live = [True] * len(self._slots)
        for t in range(self._config.ppo.num_steps):
            taken.append(torch.tensor(live))
            now = torch.from_numpy(np.stack([slot.obs for slot in self._slots]))
            u = uniforms(self._config.run.seed, iteration, numbers, t * len(dims) + dims)
            action = policy.act(now.to(device), u.to(device)).cpu()
            obs.append(now)
            actions.append(action)
            for number, (step, end) in enumerate(self._step(action.numpy(), live)):
                steps[number].append(step)
                if end is not None:
                    ended.append(end)
                    live[number] = self._config.ppo.has_critic  # else one episode an iteration
        if not self._config.ppo.has_critic:
            for number in (number for number, is_live in enumerate(live) if is_live):
                steps[number][-1] = steps[number][-1]._replace(truncated=True)
                ended.append(self._slots[number].end(terminated=False))
        inputs = ControlInputs(obs=torch.stack(obs, 1), actions=torch.stack(actions, 1))
        return inputs, torch.stack(taken, 1), steps, ended

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

    def _note(
        self,
        phases: Phases,
        ended: Sequence[Ended],
        logprobs: Tensor,
        mask: Tensor,
        steps: Sequence[Sequence[Step]],
    ) -> None:
        self._totals["episodes"] += int(global_sum(torch.tensor(len(ended))))
        scores = torch.tensor([episode.reward for episode in ended], dtype=torch.float64)
        _, variance = global_moments(scores, torch.ones_like(scores, dtype=torch.bool))
        count, env = float(len(ended)), self._config.env.id
        total = float(scores.sum())
        terminated = float(sum(episode.terminated for episode in ended))
        means = {
            "objective/scores": (total, count),
            "objective/entropy": (self._entropy_of_ended(logprobs, steps), count),
            f"env/{env}/reward": (total, count),
            f"env/{env}/length": (float(sum(episode.length for episode in ended)), count),
            f"env/{env}/terminated_frac": (terminated, count),
            f"env/{env}/truncated_frac": (count - terminated, count),
        }
        rates = {"perf/steps_per_s": int(mask.sum()), "perf/samples_per_s": count}
        local = Metrics(means=means) | performance(phases.seconds, rates, world=self._world)
        self._all_slots = self._gathered()
        scalars = {"train/episodes": float(self._totals["episodes"])}
        if self._totals["episodes"]:
            scalars["objective/scores_std"] = float(variance.sqrt())
        if self._config.ppo.reward_normalize == "running":
            scalars["rewards/running_std"] = self._scale.running_std
        self._metrics = global_metrics(local) | Metrics.scalars(scalars)

    def _entropy_of_ended(self, logprobs: Tensor, steps: Sequence[Sequence[Step]]) -> float:
        """Return -sum log p over the actions of the episodes that ended, in nats.

        What an episode that goes on has gathered so far stays with its environment.

        Args:
            logprobs: [B, T] of the actions.
            steps: what each environment answered.
        """
        total = 0.0
        for slot, row, entropies in zip(self._slots, steps, (-logprobs).tolist(), strict=True):
            for step, nats in zip(row, entropies, strict=True):
                slot.nats += nats
                if step.terminated or step.truncated:
                    total, slot.nats = total + slot.nats, 0.0
        return total

    def _gathered(self) -> list[dict[str, Any]]:
        """Return the state of every environment of all ranks, by number; a collective."""
        return [state for part in gather([s.state_dict() for s in self._slots]) for state in part]
