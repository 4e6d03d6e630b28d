"""The environment: a task becomes a prompt, a response becomes a reply and a score.

`step` is `advance` (dynamics, one slot) and then `score_batch` (rewards, any number of samples);
`LLMVectorEnv` calls the halves itself, so that N slots are one scorer call. Both halves read the
same `Sample`s. Nothing here knows a tokenizer.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from llmgym.data.choice import draw_level, draw_task, task_at
from llmgym.data.tasks import TaskSource, num_tasks
from llmgym.errors import EnvContractError, EpisodeOverError, TaskSourceError
from llmgym.messages import Completion, Message, Reply, Sample, Score, StopReason, Task
from llmgym.rewards.base import Reward, bounds_of, resolve, score_samples
from llmgym.spaces import Chat, Text
from llmgym.step import is_over, reward_of, step_info, total, whole_response

Observation = tuple[dict[str, Any], ...]
RewardSpec = Reward | str | Mapping[str, Any] | None


class LLMEnv(gymnasium.Env[Observation, str], ABC):
    """One task at a time: a prompt out, a response in, for one turn or many.

    Args:
        tasks: a `TaskSource`, or a list of tasks.
        reward: a `Reward`, a name, a mapping as in a config, or None for only `Reply.reward`. It is
            resolved at the first score, so that an unused slot stays an empty shell.
        max_turns: responses an episode may have, at least 2: a first response must not truncate.
        system: content of a system message in front of every prompt, or None.
        render_mode: "ansi" (a string), "human" (written to the terminal) or None.
        reward_bounds: the least and the most that an episode can earn; None for what the reward
            states of itself, as those by rule do, and no bounds where it states nothing. Without
            a reward, 0 to 1.

    Raises:
        EnvContractError: a setting is out of its range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "human"], "render_fps": 4}

    def __init__(
        self,
        tasks: TaskSource | Sequence[Task],
        reward: RewardSpec = None,
        *,
        max_turns: int = 8,
        system: str | None = None,
        render_mode: str | None = None,
        reward_bounds: tuple[float, float] | None = None,
    ) -> None:
        if max_turns < 2:
            raise EnvContractError(
                f"max_turns must be 2 or more, so that a first response never truncates; received "
                f"{max_turns}. An environment of one turn is SingleTurnEnv"
            )
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise EnvContractError(f'render_mode is "ansi", "human" or None; got {render_mode!r}')
        if num_tasks(tasks) == 0:
            raise TaskSourceError("An environment needs one task at least; received none")
        self.tasks: TaskSource = tasks
        self.max_turns = max_turns
        self.system = system
        self.render_mode = render_mode
        self.observation_space = Chat()
        self.action_space = Text()
        self._reward_spec = reward
        self._reward: Reward | None = None
        self._bounds = reward_bounds
        self._task: Task | None = None
        self._messages: tuple[Message, ...] = ()
        self._turn = 0
        self._over = False

    def prompt(self, task: Task) -> str | Sequence[Message]:
        """Return the first messages of an episode, and set up its state; default: the task's."""
        return task.prompt

    @abstractmethod
    def reply(self, response: Completion) -> Reply:
        """Take one response and answer as the world does; `Reply(done=True)` ends the episode."""

    def solve(self) -> str | None:
        """Return a perfect response from here, or None where none is known."""
        return self.task.solution

    @property
    def task(self) -> Task:
        """The task of the current episode; `ResetNeeded` before the first one."""
        if self._task is None:
            raise ResetNeeded("Call reset() before the first step: there is no task yet")
        return self._task

    @property
    def reward(self) -> Reward | None:
        """The resolved reward; None where only `Reply.reward` counts."""
        if self._reward is None and self._reward_spec is not None:
            self._reward = resolve(self._reward_spec)
        return self._reward

    @property
    def reward_bounds(self) -> tuple[float, float]:
        """The least and the most that an episode can earn, with the reward that is in use."""
        if self._bounds is not None:
            return self._bounds
        return (0.0, 1.0) if self.reward is None else bounds_of(self.reward)

    @final
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode and return its prompt.

        Args:
            seed: seeds the generator; None keeps it.
            options: one of `task` (a `Task`), `index` (of the source) or `level` (a random task of
                that level); without one, a task is drawn from `np_random`.

        Raises:
            EnvContractError: an unknown option, or more than one.
            TaskSourceError: there is no such index or level.
        """
        super().reset(seed=seed)
        self._task = self._choose(dict(options or {}))
        self._turn, self._over = 0, False
        prompt = self.prompt(self._task)
        messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        if self.system is not None:
            messages.insert(0, Message("system", self.system))
        self._messages = tuple(messages)
        self._show()
        info = {"task_id": self._task.id, "task": self._task.source, "turn": 0}
        return self._observe(), info

    @final
    def advance(self, action: str) -> tuple[Observation, bool, bool, Sample]:
        """Play one response without scoring it.

        Returns:
            observation, terminated, truncated, and the sample that `score_batch` judges.

        Raises:
            EpisodeOverError: the episode has ended.
            ResetNeeded: there was no reset yet.
        """
        task, response = self.task, whole_response(action)
        if self._over:
            raise EpisodeOverError("This episode has ended; call reset() before the next step")
        reading = action if isinstance(action, Completion) else response
        reply = self.reply(reading)
        if not isinstance(reply, Reply):
            raise EnvContractError(
                f"reply() of {type(self).__name__} returns a Reply; received {reply!r:.40}. "
                "Return llmgym.Reply(messages=..., done=...)"
            )
        reason = self._reason(reply, response)
        sample = Sample(
            task=task,
            messages=self._messages,
            response=response,
            text=str(reading),
            turn=self._turn,
            terminated=reason is not None and reason.terminates,
            truncated=reason is not None and not reason.terminates,
            reason=reason,
            env_reward=float(reply.reward),
            state=self.state(),
        )
        self._turn += 1
        self._over = reason is not None
        self._messages += (Message("assistant", str(response)), *_as_messages(reply.messages))
        self._show()
        return self._observe(), sample.terminated, sample.truncated, sample

    def state(self) -> object:
        """Return what the reward shall see of the episode as `Sample.state`; default: nothing."""
        return None

    @final
    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Score samples of any slots: what the reward says, where due, plus `env_reward`.

        A score is due at the end of an episode, or at every turn if the reward is `per_turn`; one
        that is not due abstains. A failed one has value 0.0 and status "error".
        """
        reward = self.reward
        if reward is None:
            return [total(sample, Score(0.0)) for sample in samples]
        due = [i for i, sample in enumerate(samples) if is_over(sample) or reward.per_turn]
        scored = score_samples(reward, [samples[i] for i in due])
        scores = dict(zip(due, scored, strict=True))
        pending = Score(0.0, status="abstain")
        return [total(sample, scores.get(i, pending)) for i, sample in enumerate(samples)]

    @final
    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play one response and score it: `advance`, then `score_batch` of that one sample."""
        return _step(self, action)

    def render(self) -> str | None:
        """Return the dialogue as text ("ansi"); None in the other modes."""
        return self._transcript() if self.render_mode == "ansi" else None

    def _choose(self, options: dict[str, Any]) -> Task:
        if set(options) - {"task", "index", "level"} or len(options) > 1:
            raise EnvContractError(
                f"reset takes one option of task, index, level; received {sorted(options)}"
            )
        if "task" in options:
            if not isinstance(options["task"], Task):
                raise EnvContractError(
                    f"The option task is a Task; received {options['task']!r:.40}"
                )
            return options["task"]
        if "index" in options:
            return task_at(self.tasks, int(options["index"]))
        if "level" in options:
            return draw_level(self.tasks, int(options["level"]), self.np_random)
        return draw_task(self.tasks, self.np_random)

    def _reason(self, reply: Reply, response: Completion) -> StopReason | None:
        if response.finish_reason == "abort":
            return StopReason.TIMEOUT
        if response.finish_reason == "length":  # cut, whatever the world made of the rest
            return StopReason.LENGTH
        if reply.done:
            if reply.reason is not None:
                return reply.reason
            return StopReason.ENV_DONE if reply.messages else StopReason.ANSWERED
        is_last = reply.truncated or self._turn + 1 >= self.max_turns
        return StopReason.MAX_TURNS if is_last else None

    def _observe(self) -> Observation:
        return tuple(message.as_dict() for message in self._messages)

    def _transcript(self) -> str:
        return "\n\n".join(f"[{message.role}] {message.content}" for message in self._messages)

    def _show(self) -> None:
        if self.render_mode == "human":
            sys.stdout.write(self._transcript() + "\n")


@final
class SingleTurnEnv(LLMEnv):
    """One response an episode: a task source and a reward are the whole environment.

    Args:
        tasks: a `TaskSource`, or a list of tasks.
        reward: as in `LLMEnv`.
        system: content of a system message in front of every prompt, or None.
        render_mode: as in `LLMEnv`.
        reward_bounds: as in `LLMEnv`.
    """

    def __init__(
        self,
        tasks: TaskSource | Sequence[Task],
        reward: RewardSpec = None,
        *,
        system: str | None = None,
        render_mode: str | None = None,
        reward_bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(
            tasks, reward, system=system, render_mode=render_mode, reward_bounds=reward_bounds
        )

    def reply(self, response: Completion) -> Reply:
        """End the episode: the response was the answer."""
        return Reply(done=True)


class LLMWrapper(gymnasium.Wrapper[Observation, str, Observation, str]):
    """A wrapper that acts the same in `step` and in a vector: override either half.

    `advance` changes the dynamics, `score_batch` the scores; `step` is derived from the two. What
    it wraps is an `LLMEnv` or another `LLMWrapper`; Gymnasium's two checking wrappers, which
    `gym.make` adds, may lie between, any other belongs outside.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.inner = inner_env(env)

    @property
    def reward_bounds(self) -> tuple[float, float]:
        """The least and the most a response can earn, after this wrapper."""
        return self.inner.reward_bounds

    def advance(self, action: str) -> tuple[Observation, bool, bool, Sample]:
        """Play one response without scoring it."""
        return self.inner.advance(action)

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Score samples of any slots: a function of the samples alone."""
        return self.inner.score_batch(samples)

    def solve(self) -> str | None:
        """Return a perfect response from here, or None where none is known."""
        return self.inner.solve()

    @final
    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play one response and score it."""
        return _step(self, action)


def _step(
    layer: LLMEnv | LLMWrapper, action: str
) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
    obs, terminated, truncated, sample = layer.advance(action)
    score = layer.score_batch([sample])[0]
    return obs, reward_of(sample, score), terminated, truncated, step_info(sample, score)


def core_env(env: gymnasium.Env) -> LLMEnv:
    """Return the `LLMEnv` below every wrapper: its `tasks`, `task` and `solve()`.

    Raises:
        EnvContractError: there is no `LLMEnv` below.
    """
    core = env.unwrapped
    if not isinstance(core, LLMEnv):
        raise EnvContractError(
            f"Expected an LLMEnv, received {type(core).__name__}: derive from it"
        )
    return core


def inner_env(env: gymnasium.Env) -> LLMEnv | LLMWrapper:
    """Return the layer that has `advance` and `score_batch`, below Gymnasium's checking wrappers.

    Raises:
        EnvContractError: another wrapper of Gymnasium, or no environment of ours, lies there.
    """
    layer = env
    while isinstance(layer, OrderEnforcing | PassiveEnvChecker):
        layer = layer.env
    if not isinstance(layer, LLMEnv | LLMWrapper):
        raise EnvContractError(
            f"Expected an LLMEnv or an LLMWrapper, received {type(layer).__name__}: its step "
            "has no advance and score_batch. Put Gymnasium's wrappers outside of ours"
        )
    return layer


def _as_messages(messages: tuple[Message, ...] | str) -> tuple[Message, ...]:
    if isinstance(messages, str):
        return (Message("user", messages),) if messages else ()
    return tuple(messages)
