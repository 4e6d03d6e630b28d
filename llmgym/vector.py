"""N slots of text environments: `advance` for every slot, then one scorer call a score group.

An episode that has ended stays ended until the slot is reset (autoreset is disabled): no terminal
observation is lost and no response is wasted. A failure in one slot ends that slot alone.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, final

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llmgym.data.choice import task_at
from llmgym.data.tasks import TaskSource, num_tasks
from llmgym.env import LLMEnv, Observation, core_env, inner_env
from llmgym.errors import EnvContractError, EpisodeOverError, RewardError
from llmgym.executors import Outcome, begin_inline, run_inline, run_threads
from llmgym.limits import ENV_TIMEOUT, CallLimit
from llmgym.messages import Task
from llmgym.processes.running import run_processes
from llmgym.processes.slot import ProcessSlot, begin_all
from llmgym.reset_options import reset_values, slots_to_reset
from llmgym.step import BatchStep, is_over, objects, whole_response
from llmgym.vector_checks import EnvFn, ExecutorName, check_settings, check_spaces, score_groups

logger = logging.getLogger("llmgym.vector")

MAX_THREADS = 32

Observations = tuple[Observation | None, ...]
Infos = dict[str, np.ndarray]


@final
class LLMVectorEnv(VectorEnv):
    """Slots stepped together. Slots made by the same callable are one score group.

    Args:
        env_fns: one callable a slot; `[make] * 256` is one scorer call a step.
        executor: "inline"; "threads" for environments that wait (tools, servers); "processes" for
            a process per slot, which can be killed: `env_fns` then have names that another
            process finds, and constructors that are cheap, as each environment is also built here.
        workers: slots played at a time; None takes all, of threads up to 32.
        env_timeout: seconds a slot may take for one step or reset; None for no limit. Inline it
            holds in the main thread of the process (`llmgym.limits`).
        memory_gb: of the data of a slot's process, in GiB; None for no limit.

    Attributes:
        limit: of a slot's time; `hurry` shortens it where the process is asked to stop.

    Raises:
        EnvContractError: no slots, spaces that differ, or a setting that does not fit.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **LLMEnv.metadata,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        executor: ExecutorName = "inline",
        workers: int | None = None,
        env_timeout: float | None = ENV_TIMEOUT,
        memory_gb: float | None = None,
    ) -> None:
        super().__init__()
        self.envs: list[gymnasium.Env] = []  # first of all: before 1.3, Gymnasium closes in __del__
        self._fns = list(env_fns)
        self.num_envs = len(self._fns)
        check_settings(
            self.num_envs,
            executor,
            workers=workers,
            env_timeout=env_timeout,
            memory_gb=memory_gb,
        )
        self.limit = CallLimit(env_timeout)
        self._workers, self._memory_gb = workers, memory_gb
        self._in_processes = executor == "processes"
        self._run = partial(run_inline, limit=self.limit)
        if executor == "threads":
            count = workers or min(self.num_envs, MAX_THREADS)
            self._run = partial(run_threads, workers=count, limit=self.limit)
        self.envs = [self._made(slot) for slot in range(self.num_envs)]
        self._inner = [inner_env(env) for env in self.envs]
        self._score_groups = score_groups(self._fns)
        self.render_mode = self.envs[0].render_mode
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        check_spaces(self.envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._observations: list[Observation | None] = [None] * self.num_envs
        self._tasks: list[Task | None] = [None] * self.num_envs
        self._turns = np.zeros(self.num_envs, dtype=np.int64)
        self._groups = np.arange(self.num_envs)
        self._live = np.zeros(self.num_envs, dtype=np.bool_)
        self._actions: Sequence[str | None] | None = None

    def scoring_envs(self) -> list[gymnasium.Env]:
        """Return the environment of each score group that scores for all its slots."""
        return [self.envs[slots[0]] for slots in self._score_groups]

    def num_tasks(self) -> int | None:
        """Return how many indices every slot has; None where the sources have no end."""
        sizes = [num_tasks(self._source(slots[0])) for slots in self._score_groups]
        return min((size for size in sizes if size is not None), default=None)

    def tasks(self, indices: Iterable[int]) -> list[Task]:
        """Return the tasks at indices of the source.

        Raises:
            EnvContractError: the slots have different sources.
            TaskSourceError: the source has no such index.
        """
        if len(self._score_groups) > 1:
            raise EnvContractError("The slots have several sources; ask envs.envs[slot].unwrapped")
        return [task_at(self._source(0), index) for index in indices]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, Infos]:
        """Begin episodes.

        Args:
            seed: of the first slot, the others count up from it (a group shares its seed); a list
                seeds slot by slot; None keeps the generators.
            options: `indices`, `tasks` or `levels`: one for each group of slots; `group_size`:
                neighbouring slots that share a task; `reset_mask`: [num_envs] bool, the slots to
                reset (default all), which the values then belong to, in order.

        Returns:
            Observations, those of slots that were not reset as they were; infos `task_id`, `task`,
            `turn`, `group` (the first slot of those that share a task).

        Raises:
            EnvContractError: an unknown option, or numbers that do not fit together.
            TaskSourceError: there is no such index or level.
            EnvTimeoutError: a slot took longer than `env_timeout`.
            EnvProcessError: a slot's process ended twice, or raised an error.
        """
        chosen = dict(options or {})
        slots = slots_to_reset(chosen, self.num_envs)
        size = int(chosen.pop("group_size", 1))
        values = reset_values(chosen, len(slots), size)
        seeds = self._seeds(seed, slots, size, shared=bool(chosen.keys() & {"indices", "tasks"}))
        settings: dict[int, dict[str, Any]] = {
            slot: {} if values is None else {values[0]: values[1][position // size]}
            for position, slot in enumerate(slots)
        }
        for slot, observation in self._begin(seeds, settings).items():
            self._observations[slot] = observation
            self._tasks[slot] = core_env(self.envs[slot]).task
        self._live[slots] = True
        self._turns[slots] = 0
        self._regroup(slots, size)
        observations = tuple(
            obs if slot in seeds else deepcopy(obs) for slot, obs in enumerate(self._observations)
        )
        return observations, {**self._task_infos(), "group": self._groups.copy()}

    def step(
        self, actions: Sequence[str | None]
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Play one response in every slot whose action is not None.

        Returns:
            Observations (None for idle slots), rewards [num_envs] float64, always finite,
            terminated and truncated [num_envs] bool, infos: `reward_valid` (False where the reward
            means nothing), `reward/<part>` float32 (NaN where absent), `env_reward` (the part of
            the reward that the environment paid by itself), `reward_spans` (the parts of it that
            belong to spans of the response), `stop_reason`, `reward_error`, `reward_retries`,
            `task_id`, `task` (objects, None where absent), `turn`, `env_ms` (of the slot) and
            `score_ms` (of the call that scored it).

        Raises:
            EnvContractError: a wrong number of actions, or one that is no text.
            EpisodeOverError: a slot whose episode has ended has an action.
            ResetNeeded: there was no reset yet.
            RewardError: the reward is broken.
        """
        acting = self._check_actions(actions)
        outcomes = self._advance(acting)
        step = BatchStep(self.num_envs)
        for slot, outcome in outcomes.items():
            step.env_ms[slot] = 1000 * outcome.seconds
            if outcome.failure is None:
                self._accept(step, slot, outcome)
            else:
                self._fail(step, slot, outcome)
        for slots in self._score_groups:
            self._score(step, [slot for slot in slots if slot in step.samples], slots[0])
        infos = {**self._task_infos(), **step.infos()}
        observations = tuple(
            obs if slot in outcomes else None for slot, obs in enumerate(self._observations)
        )
        return observations, step.rewards, step.terminated, step.truncated, infos

    def step_async(self, actions: Sequence[str | None]) -> None:
        """Take the actions of the next `step_wait`."""
        self._check_actions(actions)
        self._actions = actions

    def step_wait(self) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Play the actions of `step_async`.

        Raises:
            EnvContractError: there was no `step_async`.
        """
        if self._actions is None:
            raise EnvContractError("Call step_async(actions) before step_wait()")
        actions, self._actions = self._actions, None
        return self.step(actions)

    def render(self) -> tuple[Any, ...]:
        """Return what every slot renders."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every slot."""
        for env in self.envs:
            env.close()

    def _source(self, slot: int) -> TaskSource:
        return core_env(self.envs[slot]).tasks

    def _seeds(
        self, seed: int | Sequence[int | None] | None, slots: list[int], size: int, *, shared: bool
    ) -> dict[int, int | None]:
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            offsets = {slot: position // size for position, slot in enumerate(slots)}
            return {slot: int(seed) + (slot if size == 1 else offsets[slot]) for slot in slots}
        if seed is not None:
            if len(seed) != self.num_envs:
                message = (
                    f"seed takes one number for each of {self.num_envs} slots; got {len(seed)}"
                )
                raise EnvContractError(message)
            return {slot: seed[slot] for slot in slots}
        if size == 1 or shared:
            return dict.fromkeys(slots)
        # Nothing says what a group's task is: its slots draw it, so they must draw the same.
        drawn = self.np_random.integers(2**31, size=len(slots) // size)
        return {slot: int(drawn[position // size]) for position, slot in enumerate(slots)}

    def _made(self, slot: int) -> gymnasium.Env:
        """Build the environment of a slot."""
        make = self._fns[slot]
        if self._in_processes:
            return ProcessSlot(make, self.limit, self._memory_gb, f"slot {slot}")
        return make()

    def _begin(
        self, seeds: dict[int, int | None], options: dict[int, dict[str, Any]]
    ) -> dict[int, Observation]:
        """Reset slots; return their observations."""
        if self._in_processes:
            slots = {slot: self._process(slot) for slot in options}
            return begin_all(slots, seeds, options, limit=self.limit, workers=self._workers)
        return {
            slot: begin_inline(self.envs[slot], slot, seeds[slot], options[slot], self.limit)
            for slot in options
        }

    def _advance(self, acting: dict[int, str]) -> dict[int, Outcome]:
        """Play a response in each slot that has one."""
        if not self._in_processes:
            return self._run(lambda slot: self._inner[slot].advance(acting[slot]), acting)
        requests = {
            slot: (self._process(slot).client, ("advance", (action,)))
            for slot, action in acting.items()
        }
        return run_processes(requests, limit=self.limit, workers=self._workers)

    def _process(self, slot: int) -> ProcessSlot:
        env = self.envs[slot]
        assert isinstance(env, ProcessSlot)
        return env

    def _regroup(self, slots: list[int], size: int) -> None:
        first: dict[str, int] = {}
        for position, slot in enumerate(slots):
            leader = slots[position - position % size]
            if size == 1:
                leader = first.setdefault(core_env(self.envs[slot]).task.id, slot)
            self._groups[slot] = leader

    def _check_actions(self, actions: Sequence[str | None]) -> dict[int, str]:
        if isinstance(actions, str):  # a text has a length, and its characters would be actions
            raise EnvContractError(f"step takes a list of actions; got the text {actions!r:.40}")
        if len(actions) != self.num_envs:
            message = f"step takes one action for each of {self.num_envs} slots; got {len(actions)}"
            raise EnvContractError(message)
        acting = {slot: action for slot, action in enumerate(actions) if action is not None}
        for slot, action in acting.items():
            whole_response(action)
            if self._tasks[slot] is None:
                raise ResetNeeded(f"Call reset() before the first step: slot {slot} has no task")
            if not self._live[slot]:
                raise EpisodeOverError(
                    f"The episode of slot {slot} has ended: reset it (options reset_mask), or pass "
                    "None as its action"
                )
        return acting

    def _accept(self, step: BatchStep, slot: int, outcome: Outcome) -> None:
        obs, terminated, truncated, sample = outcome.value
        step.terminated[slot], step.truncated[slot] = terminated, truncated
        step.samples[slot] = replace(sample, group=int(self._groups[slot]))
        self._observations[slot] = obs
        self._live[slot] = not is_over(sample)
        self._turns[slot] += 1

    def _fail(self, step: BatchStep, slot: int, outcome: Outcome) -> None:
        step.fail(slot, outcome)
        # A stuck thread may still hold the old environment: the new one shares nothing with it.
        old = self.envs[slot]
        closing = self._run(lambda _: old.close(), [slot])[slot]
        if closing.failure is not None:
            logger.warning("slot %d failed, and closing it failed too: %s", slot, closing.error)
        rng = deepcopy(old.np_random)
        self.envs[slot] = self._made(slot)
        self.envs[slot].np_random = rng
        self._inner[slot] = inner_env(self.envs[slot])
        self._observations[slot] = deepcopy(self._observations[slot])
        self._live[slot] = False
        self._turns[slot] += 1

    def _score(self, step: BatchStep, slots: list[int], leader: int) -> None:
        samples = [step.samples[slot] for slot in slots]
        began = time.monotonic()
        scores = self._inner[leader].score_batch(samples)
        elapsed = 1000 * (time.monotonic() - began)
        if len(scores) != len(samples):
            raise RewardError(f"score_batch gave {len(scores)} scores for {len(samples)} samples")
        for slot, score in zip(slots, scores, strict=True):
            step.accept(slot, score, elapsed)

    def _task_infos(self) -> Infos:
        ids = [None if task is None else task.id for task in self._tasks]
        sources = [None if task is None else task.source for task in self._tasks]
        turns = self._turns.copy()
        return {"task_id": objects(ids), "task": objects(sources), "turn": turns}
