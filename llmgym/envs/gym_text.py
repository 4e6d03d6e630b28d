"""Any Gymnasium environment of discrete actions as an environment of text, of several turns.

Three functions translate: one describes an observation in words, one reads an action from a
response, and one, where it is known, says a perfect response. The reward is the inner
environment's. A task names how the inner environment is built and reset, in its `meta`:

    kwargs   keyword arguments of `gymnasium.make`; none without it
    seed     of the inner `reset`
    options  of the inner `reset`; none without it
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, final

import gymnasium

from llmgym.data.tasks import TaskSource
from llmgym.env import LLMEnv, RewardSpec
from llmgym.errors import EnvContractError
from llmgym.messages import Completion, Reply, Task

Describe = Callable[[gymnasium.Env, Any], str]
"""The inner environment and its observation to words."""
Parse = Callable[[gymnasium.Env, str], Any]
"""The inner environment and a response to an action; None where the response is none."""
Solve = Callable[[gymnasium.Env], str | None]
"""A perfect response from where the inner environment is."""
Pays = Callable[[float, bool], float]
"""An inner reward, and whether the inner environment terminated, to what a turn pays."""

MAX_STATES = 100_000
"""Of a table of transitions, this many states are searched for a solution."""


@final
class GymText(LLMEnv):
    """A Gymnasium environment in words: a response becomes an action, an observation a message.

    Args:
        env_id: the inner environment; any id of Gymnasium.
        tasks: how it is built and reset, see above. `Task.prompt` is the rules, which come before
            the description of the first observation; it may be empty.
        describe: tells what is observed.
        parse: reads a response; None where it is no action.
        solve: a perfect response; None where none is known.
        expects: what a response must be; it answers one that is no action.
        invalid: what such a response does: "reply" answers it and costs a turn; "end" ends the
            episode.
        penalty: what such a response pays, 0 or less.
        pays: translates the inner reward; None for that reward itself.
        wrap: what the inner environment is wrapped in; None for nothing.
        reward: as in `LLMEnv`; None for the inner reward alone.
        **kwargs: for `LLMEnv`. `max_turns` is the inner environment's own limit of steps without
            it, or 100; a response that is no action counts as a turn, but not as an inner step.

    Raises:
        EnvContractError: the actions of the inner environment are not discrete.
    """

    def __init__(  # noqa: PLR0913 - what is translated, each way
        self,
        env_id: str,
        tasks: TaskSource | Sequence[Task],
        *,
        describe: Describe,
        parse: Parse,
        solve: Solve | None = None,
        expects: str = "Answer with one action.",
        invalid: Literal["reply", "end"] = "reply",
        penalty: float = 0.0,
        pays: Pays | None = None,
        wrap: Callable[[gymnasium.Env], gymnasium.Env] | None = None,
        reward: RewardSpec = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("max_turns", gymnasium.spec(env_id).max_episode_steps or 100)
        super().__init__(tasks, reward, **kwargs)
        if invalid not in ("reply", "end") or penalty > 0:
            raise EnvContractError(
                f'invalid is "reply" or "end" and penalty 0 or less; got {invalid!r}, {penalty}'
            )
        self.env_id = env_id
        self._describe, self._parse, self._solve = describe, parse, solve
        self._pays, self._wrap = pays, wrap
        self._expects, self._invalid, self._penalty = expects, invalid, penalty
        self._inner: gymnasium.Env | None = None
        self._built: Mapping[str, Any] = {}

    @property
    def inner(self) -> gymnasium.Env:
        """The environment below; there is one from the first reset on."""
        assert self._inner is not None
        return self._inner

    def prompt(self, task: Task) -> str:
        """Reset the inner environment and return the rules and what is observed first."""
        built = dict(task.meta.get("kwargs", {}))
        if self._inner is None or built != self._built:
            self._inner, self._built = self._make(built), built
        observation, _ = self._inner.reset(
            seed=int(task.meta["seed"]), options=task.meta.get("options")
        )
        rules = task.prompt if isinstance(task.prompt, str) else ""
        return "\n\n".join(filter(None, [rules, self._describe(self._inner, observation)]))

    def reply(self, response: Completion) -> Reply:
        """Take a step; `(terminated, truncated)` of both True is terminated."""
        action = self._parse(self.inner, str(response))
        if action is None:
            return Reply(self._expects, done=self._invalid == "end", reward=self._penalty)
        observation, reward, terminated, truncated, _ = self.inner.step(action)
        paid = float(reward) if self._pays is None else self._pays(float(reward), bool(terminated))
        return Reply(
            self._describe(self.inner, observation),
            done=bool(terminated),
            reward=paid,
            truncated=bool(truncated),
        )

    def solve(self) -> str | None:
        """Return a perfect response from here; None where none is known."""
        return None if self._solve is None or self._inner is None else self._solve(self._inner)

    def close(self) -> None:
        """Close the inner environment."""
        if self._inner is not None:
            self._inner.close()

    def _make(self, kwargs: Mapping[str, Any]) -> gymnasium.Env:
        env = gymnasium.make(self.env_id, disable_env_checker=True, **kwargs)
        if not isinstance(env.action_space, gymnasium.spaces.Discrete):
            raise EnvContractError(
                f"GymText needs discrete actions; {self.env_id} has {env.action_space}"
            )
        return env if self._wrap is None else self._wrap(env)


def named_action(names: Sequence[str], text: str) -> int | None:
    """Return the index of the action that a response is, whatever its case; None for another."""
    word = text.strip().strip(".").casefold()
    return names.index(word) if word in names else None


def shortest_path(
    transitions: Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]],
    start: int,
    is_goal: Callable[[float, bool], bool],
) -> list[int] | None:
    """Return the fewest actions from a state to a goal, in a table without chance.

    Args:
        transitions: [state][action] to one (probability, next state, reward, terminated), as the
            attribute `P` of Gymnasium's toy environments.
        start: the state.
        is_goal: whether a step of this reward and termination reaches the goal.

    Returns:
        The actions; None where no goal can be reached.
    """
    came_from: dict[int, tuple[int, int]] = {}
    waiting, known = deque([start]), {start}
    while waiting and len(known) <= MAX_STATES:
        state = waiting.popleft()
        for action, ((_, after, reward, terminated),) in transitions[state].items():
            if is_goal(float(reward), terminated):
                return [*_actions_to(state, start, came_from), action]
            if not terminated and after not in known:
                known.add(after)
                came_from[after] = (state, action)
                waiting.append(after)
    return None


def _actions_to(state: int, start: int, came_from: Mapping[int, tuple[int, int]]) -> list[int]:
    actions: list[int] = []
    while state != start:
        state, action = came_from[state]
        actions.append(action)
    return actions[::-1]
