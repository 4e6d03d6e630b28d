"""`EnvProcess`: a Gymnasium environment in a process of its own, which can be killed.

For libraries that seed Python's or NumPy's shared generators, print, crash, hang or leave processes
behind: whatever they do happens elsewhere. The process is made anew after a crash or a hang.
"""

from collections.abc import Mapping
from typing import Any, final

import gymnasium
from gymnasium.error import ResetNeeded

from llmgym.errors import EnvContractError
from llmgym.limits import ENV_TIMEOUT, CallLimit
from llmgym.processes.client import EnvClient
from llmgym.processes.recipe import recipe_of
from llmgym.processes.running import close_process, run_processes, value_of


@final
class EnvProcess(gymnasium.Env[Any, Any]):
    """An environment that another process builds and plays.

    Observations and infos are plain data: numbers, texts, arrays, lists and mappings; tensors
    become arrays, and objects of another kind in infos their text. `reset(seed=...)` also seeds
    the shared generators of Python, NumPy and torch in that process. A copy (by `pickle` or
    `copy.deepcopy`) starts a process of its own and plays the episode up to the same step again.

    Args:
        make: a registered id, "package.module:function", "file.py:function", a function at the top
            of a module, or a `functools.partial` of one.
        kwargs: its arguments.
        timeout: seconds that one call may take; None for no limit.
        memory: of the process's data, in GiB; None for no limit.

    Attributes:
        limit: of a call's time.

    Raises:
        EnvContractError: another process does not find `make`, a setting is out of its range, or a
            space of another library cannot cross.
        EnvTimeoutError: building the environment takes too long.
        EnvProcessError: the environment crashes while it is built, or raises an error.
    """

    def __init__(
        self,
        make: object,
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = ENV_TIMEOUT,
        memory: float | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise EnvContractError(f"timeout must be above 0, or None; received {timeout}")
        self.limit = CallLimit(timeout)
        self._client = EnvClient(recipe_of(make, kwargs), memory)
        self._start()

    @property
    def pid(self) -> int | None:
        """Id of the process; None where there is none, until the next reset."""
        return self._client.pid

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, in a new process where the old one has ended.

        Raises:
            EnvTimeoutError: it takes too long; the process is killed.
            EnvProcessError: the process ends, or the environment raises an error.
        """
        super().reset(seed=seed)
        if seed is None:
            self._replay()  # a copy draws on as the original would
        self._is_reset, self._history = False, []
        observation, info, before = self._asked("reset", seed, options)
        self._is_reset, self._began = True, (before, seed, options)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Play one action.

        Raises:
            ResetNeeded: there was no reset, or the process has ended since.
            EnvTimeoutError: it takes too long; the process is killed.
            EnvProcessError: the process ends, or the environment raises an error.
        """
        if not self._is_reset:
            raise ResetNeeded("Call reset() first: the environment's process has no episode")
        self._replay()
        result = self._asked("step", action)
        self._history.append(action)
        return result

    def render(self) -> Any:  # noqa: ANN401 - as of Gymnasium
        """Return what the environment renders, as plain data."""
        self._replay()
        return self._asked("render")

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any method's
        """Call a method of the environment, or read an attribute; return plain data.

        Args:
            name: of the environment or of a wrapper around it.
            args: of the method.
            kwargs: of the method.
        """
        self._replay()
        return self._asked("call", name, args, kwargs)

    def close(self) -> None:
        """Close the environment and end its process; a reset starts another."""
        self._is_reset = False
        close_process(self._client)

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the process: what the episode was played from, and its actions."""
        return {
            **{name: value for name, value in vars(self).items() if name != "_client"},
            "recipe": self._client.recipe,
            "memory": self._client.memory_gb,
            "must_replay": self._is_reset,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state; a process starts when the copy is used."""
        own = dict(state)
        self._client = EnvClient(own.pop("recipe"), own.pop("memory"))
        self._must_replay = own.pop("must_replay")
        vars(self).update({name: value for name, value in own.items() if name != "_must_replay"})

    def _start(self) -> None:
        self._is_reset, self._must_replay = False, False
        self._history: list[Any] = []
        self._began: tuple[Any, int | None, dict[str, Any] | None] | None = None
        self._asked(None)
        traits = self._client.traits
        assert traits is not None
        self.observation_space, self.action_space = traits.spaces
        self.metadata = traits.metadata
        self.render_mode = traits.render_mode

    def _replay(self) -> None:
        """Bring the process of a copy to where the original was."""
        if not self._must_replay or self._began is None:
            return
        (states, rng), seed, options = self._began
        self._asked("restore", states, rng)
        self._asked("reset", seed, options)
        for action in self._history:
            self._asked("step", action)

    def _asked(self, name: str | None, *arguments: Any) -> Any:  # noqa: ANN401 - as of `call`
        """Make a request and return its value."""
        request = None if name is None else (name, arguments)
        self._must_replay = False
        outcome = run_processes({0: (self._client, request)}, limit=self.limit)[0]
        if not self._client.is_running:
            self._is_reset = False
        return value_of(outcome, f"{name or 'building'} of {self._client.name}")
