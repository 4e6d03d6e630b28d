"""The first half of a text rollout: its episodes, played when it is asked for or ahead of that."""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, final

from torch import Tensor

from llmgym.data.mixture import MixtureSampler
from llmgym.env_state import load_states, stateful_layers, states_of
from llmgym.vector import LLMVectorEnv
from trainers.collect.ahead import AheadThread, PolicyCopy
from trainers.collect.base import Actor, Reference
from trainers.collect.episodes import Episodes
from trainers.collect.metrics import Phases
from trainers.collect.mixture import earned_by_env
from trainers.collect.play import PlayOptions, play
from trainers.collect.reward_statistics import RewardScales
from trainers.config import Config
from trainers.distributed.collectives import SideGroup, World
from trainers.functional.distillation import TeacherModel
from trainers.generation.base import Generator, Sampling
from trainers.models.chat import ChatFormat


class Sampler(Protocol):
    """Deals out task numbers, each rank its own."""

    def next(self, n: int) -> list[int]:
        """Return this rank's next `n` task numbers."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        ...


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """What a text collector is made of.

    Attributes:
        envs: one slot for each of this rank's episodes of an iteration.
        reference: None where no KL to a reference is measured.
        teacher: pays for each token; None where none does.
        max_tokens: longest sequence the model takes, or None.
        env_names: name of each slot's environment; empty: the run's only one.
        copy: writes each rollout while the one before is learned from; None: the actor writes it
            when it is asked for.
    """

    envs: LLMVectorEnv
    generator: Generator
    chat: ChatFormat
    sampler: Sampler
    reference: Reference | None = None
    teacher: TeacherModel | None = None
    max_tokens: int | None = None
    env_names: Sequence[str] = ()
    copy: PolicyCopy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRollout:
    """What was written, before anything is made of it.

    Attributes:
        logprobs: [B, T] of what was sampled, by the trainer's forward with the weights that wrote
            it; None: the actor still has these weights.
        version: of these weights.
        phases: seconds so far.
        levels: that a curriculum gave to an environment's tasks, by its name.
    """

    episodes: Episodes
    logprobs: Tensor | None
    version: int
    phases: Phases
    levels: Mapping[str, int] = field(default_factory=dict)


@final
class RolloutWriter:
    """Plays the environments of a run; remembers its place in tasks, rewards and environments.

    Args:
        parts: environments, generator, chat format, sampler, and the copy that writes ahead.
        config: of the run.
        world: this process among its peers.

    Attributes:
        waited: seconds that the last rollout was waited for.
    """

    def __init__(self, parts: TextParts, config: Config, world: World) -> None:
        self._parts, self._config, self._world = parts, config, world
        self._scales = RewardScales(parts.envs)
        self._layers = stateful_layers(parts.envs.scoring_envs())
        self._ahead: AheadThread[WrittenRollout] | None = None
        if parts.copy is not None:
            side = SideGroup(config.backend.timeout_seconds)
            self._ahead = AheadThread(parts.envs.limit, side, world.device)
        self._begun_at: dict[str, Any] | None = None
        self.waited = 0.0

    def write(self, actor: Actor, iteration: int) -> WrittenRollout:
        """Return the rollout of an iteration; where they are written ahead, begin the next one.

        Raises:
            Exception: what a rollout that was written ahead raised.
        """
        if self._ahead is None or self._parts.copy is None:
            return self._played(actor, iteration)
        copy, began = self._parts.copy, time.perf_counter()
        written = self._ahead.take(iteration)
        if written is None:  # the first one, or the first after a resume
            self.sync(actor)
            written = self._played_by_copy(copy, iteration)
        self.waited, self._begun_at = time.perf_counter() - began, None
        if iteration + 1 < self._config.ppo.num_iterations:
            self._begun_at = self._position()
            with written.phases.of("sync"):
                self.sync(actor)
            self._ahead.begin(iteration + 1, lambda: self._played_by_copy(copy, iteration + 1))
        return written

    def _played(self, actor: Actor, iteration: int) -> WrittenRollout:
        phases = Phases()
        if self._ahead is None:
            with phases.of("sync"):
                self.sync(actor)
        with phases.of("rollout"):
            self._scales.forget()
            episodes = self._play(iteration)
            self._parts.generator.sleep()
            self._scales.learn()
            levels = self._learn_level(episodes)
        phases.move("rollout", "score", episodes.score_seconds)
        version = actor.policy_version
        return WrittenRollout(
            episodes=episodes, logprobs=None, version=version, phases=phases, levels=levels
        )

    def _learn_level(self, episodes: Episodes) -> dict[str, int]:
        """Tell curricula what was earned; return the levels that it was earned at."""
        parts, sampler = self._parts, self._parts.sampler
        levels = sampler.levels() if isinstance(sampler, MixtureSampler) else {}
        if isinstance(sampler, MixtureSampler) and levels:
            sampler.learn(earned_by_env(episodes, parts.envs, parts.env_names, self._config))
        return levels

    def _played_by_copy(self, copy: PolicyCopy, iteration: int) -> WrittenRollout:
        """Write a rollout with the copy; its weights move before the rollout is learned from."""
        written = self._played(copy, iteration)
        with written.phases.of("logprobs"):
            logprobs = copy.logprobs(written.episodes.inputs, written.episodes.sampled)
        return replace(written, logprobs=logprobs)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the tasks and the memory of rewards and environments.

        A rollout that is written ahead is in neither: after a resume it is written anew.
        """
        return self._position() if self._begun_at is None else deepcopy(self._begun_at)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._parts.sampler.load_state_dict(state["sampler"])
        self._scales.load_state_dict(state["rewards"])
        load_states(self._layers, state.get("envs", []))

    def sync(self, actor: Actor) -> None:
        """Give the generator the actor's weights, where it has others.

        Waits for the rollout that is being written ahead.
        """
        if self._ahead is not None and self._parts.copy is not None:
            self._ahead.wait()
            self._parts.copy.take(actor)
            actor = self._parts.copy
        generator, version = self._parts.generator, actor.policy_version
        if generator.policy_version != version:
            generator.load_weights(actor.weights(), version)

    def stop(self) -> None:
        """Drop a rollout that is written ahead; the last call but `close`."""
        if self._ahead is not None:
            self._parts.generator.stop()
            self._ahead.stop()

    def _position(self) -> dict[str, Any]:
        """Return what writing a rollout changes."""
        return deepcopy({
            "sampler": self._parts.sampler.state_dict(),
            "rewards": self._scales.state_dict(),
            "envs": states_of(self._layers),
        })  # fmt: skip

    def _play(self, iteration: int) -> Episodes:
        config, parts = self._config, self._parts
        prompts = self._world.share(config.ppo.num_prompts)
        size = config.ppo.samples_per_prompt
        # Counted over all ranks, so that a row draws the same at any number of them.
        index = [prompt * size + k for prompt in prompts for k in range(size)]
        sampling = Sampling(
            temperature=config.generation.temperature, seed=config.run.seed, iteration=iteration
        )
        options = PlayOptions(
            indices=parts.sampler.next(len(prompts)),
            index=index,
            group_size=size,
            world=self._world,
            max_tokens=parts.max_tokens,
            is_stopping=None if self._ahead is None else self._ahead.is_stopping,
        )
        return play(
            parts.envs,
            parts.generator,
            chat=parts.chat,
            config=config,
            sampling=sampling,
            options=options,
        )
