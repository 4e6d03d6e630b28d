"""One environment of a control rollout, and what several of them answered over T steps.

Every episode is reset with a seed of its own, made of (run seed, environment, episode number), so
an environment in the middle of an episode is known by that number, the actions since, and what it
remembered when the episode began (`llmgym.env_state`): a resume plays them again and is where it
was, bit for bit.

B environments, T steps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import FlattenObservation
from torch import Tensor

from llmgym.env_state import load_states, stateful_layers, states_of
from trainers.collect.action_limits import ActionLimits, limits_of


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


@final
class EnvSlot:
    """One environment in the middle of an episode.

    Args:
        env: with a time limit of its own, if it has any.
        number: of the start, counted over all ranks; environments of a group share it.
        seed: of the run.

    Attributes:
        nats: minus the log-probability of the episode's actions so far; kept by the collector.
        limits: which actions may follow, where the environment says so.
    """

    def __init__(self, env: gymnasium.Env, number: int, seed: int) -> None:
        self._env = env
        space = env.action_space  # wrappers would look for it anew at each step
        self._space = space
        self._box = space if isinstance(space, Box) else None
        self._number = np.int64 if space.dtype is None else space.dtype.type
        self._key = (seed, number)
        self._episode = -1
        self._new: list[Any] = []
        self._layers = stateful_layers([env])
        self._memory: list[dict[str, Any]] = []
        self._length = 0
        self._reward = 0.0
        self.nats = 0.0
        self.limits = ActionLimits()
        self.obs = self.begin()

    def begin(self) -> np.ndarray:
        """Begin the next episode and return its first observation."""
        self._episode += 1
        self._memory = states_of(self._layers)
        self._new, self._length, self._reward = [], 0, 0.0
        seed = np.random.SeedSequence((*self._key, self._episode)).generate_state(1)[0]
        obs, info = self._env.reset(seed=int(seed))
        self.limits = limits_of(info, self._space)
        self.obs = np.array(obs, dtype=np.float32)
        return self.obs

    def step(self, action: np.ndarray) -> tuple[Step, Ended | None]:
        """Act, and begin the next episode where this one is over."""
        if self._box is None:
            taken: Any = self._number(action)  # the type of `Discrete.sample`
            self._new.append(int(action))
        else:
            taken = np.clip(action, self._box.low, self._box.high).astype(self._box.dtype)
            self._new.append(taken.tolist())
        self._length += 1
        obs, reward, terminated, truncated, info = self._env.step(taken)
        self._reward += float(reward)
        self.obs = np.array(obs, dtype=np.float32)
        step = Step(self.obs, float(reward), bool(terminated), bool(truncated))
        if not (terminated or truncated):
            self.limits = limits_of(info, self._space)
            return step, None
        return step, self.end(terminated=bool(terminated))

    def end(self, *, terminated: bool) -> Ended:
        """Begin the next episode; return what became of this one."""
        ended = Ended(self._reward, self._length, terminated)
        self.begin()
        return ended

    def waiting(self) -> Step:
        """Return the step that fills rows after the end of an episode."""
        return Step(self.obs, 0.0, terminated=True, truncated=False)

    def news(self) -> dict[str, Any]:
        """Return the episode so far: its actions since the last call, its memory at the start."""
        actions, self._new = self._new, []
        return {
            "episode": self._episode,
            "actions": actions,
            "nats": self.nats,
            "memory": self._memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the episode of an `EpisodeLog` again, up to where it stood."""
        self._episode = int(state["episode"]) - 1
        load_states(self._layers, state.get("memory", []))
        self.begin()
        for action in state["actions"]:
            _, ended = self.step(np.asarray(action))
            assert ended is None, "the environment does not repeat itself for equal seeds"
        self.nats, self._new = float(state["nats"]), []

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


@final
class EpisodeLog:
    """The actions of the episode that an environment is in, collected from `EnvSlot.news`.

    An addition costs what it adds, however long the episode is: the array grows by doubling, and
    numbers that `state_dict` has returned are never written again.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] = {"episode": -1, "nats": 0.0, "memory": []}
        self._actions, self._length = np.empty(0), 0

    def add(self, news: Mapping[str, Any]) -> None:
        """Take the actions that a slot took since the last addition."""
        if news["episode"] != self._state["episode"]:
            self._actions, self._length = np.empty(0), 0
        self._state = {name: news[name] for name in ("episode", "nats")}
        self._state["memory"] = news.get("memory", [])
        if not len(news["actions"]):
            return
        added = np.asarray(news["actions"])
        end = self._length + len(added)
        if end > len(self._actions):
            grown = np.empty((2 * end, *added.shape[1:]), added.dtype)
            if self._length:
                grown[: self._length] = self._actions[: self._length]
            self._actions = grown
        self._actions[self._length : end] = added
        self._length = end

    def state_dict(self) -> dict[str, Any]:
        """Return the episode as it is now; later additions do not change what was returned."""
        return {**self._state, "actions": self._actions[: self._length]}


@final
class Recording:
    """What B environments answered in T steps; a step that was not taken ends what there is.

    Args:
        slots: the environments.
        num_steps: T.

    Attributes:
        obs: [T, B, ...] before each action.
        taken: [T, B] True where an action was taken.
        ended: the episodes that ended.
    """

    def __init__(self, slots: Sequence[EnvSlot], num_steps: int) -> None:
        shape = (num_steps, len(slots))
        self.obs = np.zeros((*shape, *slots[0].obs.shape), np.float32)
        self.taken = np.zeros(shape, bool)
        self.ended: list[Ended] = []
        self._next_obs = np.zeros_like(self.obs)
        self._rewards = np.zeros(shape, np.float32)
        self._terminated = np.ones(shape, bool)
        self._truncated = np.zeros(shape, bool)

    def add(self, t: int, steps: Sequence[tuple[Step, Ended | None]]) -> None:
        """Take what every environment answered to its action `t`."""
        answers, ended = zip(*steps, strict=True)
        self._next_obs[t] = [step.obs for step in answers]
        self._rewards[t] = [step.reward for step in answers]
        self._terminated[t] = [step.terminated for step in answers]
        self._truncated[t] = [step.truncated for step in answers]
        self.ended += [episode for episode in ended if episode is not None]

    def cut(self, slot: int, ended: Ended) -> None:
        """Note that the rollout ended an episode that was not over."""
        self._truncated[-1, slot] = True
        self.ended.append(ended)

    @property
    def next_obs(self) -> Tensor:
        """[B, T, ...] what followed each action: the true last one where the episode is over."""
        return by_row(self._next_obs)

    @property
    def rewards(self) -> Tensor:
        """[B, T] float64 as the environments paid them, in the precision of float32."""
        return by_row(self._rewards).double()

    @property
    def terminated(self) -> Tensor:
        """[B, T] True where the task ended, and on steps that were not taken."""
        return by_row(self._terminated)

    @property
    def truncated(self) -> Tensor:
        """[B, T] True where an episode was cut."""
        return by_row(self._truncated)


def by_row(steps: np.ndarray) -> Tensor:
    """Return [T, B, ...] as a tensor [B, T, ...]."""
    return torch.from_numpy(steps).transpose(0, 1).contiguous()
