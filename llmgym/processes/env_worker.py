"""What runs in the process of one environment: builds it and answers requests, one by one.

Its random generators are its own: those of Python, NumPy and, where it is loaded, torch are seeded
with each `reset(seed=...)`, for environments that draw from them.
"""

import faulthandler
import gc
import os
import pickle
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, final

import gymnasium
import numpy as np

from llmgym.addresses import load
from llmgym.env import LLMEnv, LLMWrapper, inner_env
from llmgym.errors import EnvContractError
from llmgym.processes.plain import dumped, plain, plain_observation, plain_space
from llmgym.processes.recipe import Recipe

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request.

    Attributes:
        value: what it returned; None where it raised.
        rng: the state of the environment's generator after it, where it has one.
        raised: name of the exception's class; empty where it returned.
        line: the exception in one line.
        trace: its traceback.
    """

    value: Any = None
    rng: Any = None
    raised: str = ""
    line: str = ""
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a process says of its environment once it is built.

    Attributes:
        spaces: of observations and of actions.
        metadata: of the environment.
        render_mode: as it was built.
    """

    spaces: tuple[gymnasium.Space[Any], gymnasium.Space[Any]]
    metadata: dict[str, Any]
    render_mode: str | None


def work(descriptor: int, output: int) -> None:
    """Build what arrives first on a connection, then answer requests until it closes."""
    _print_to(output)
    connection = Connection(descriptor)
    own = os.getpid()
    place, target, arguments, memory, rng = connection.recv()
    os.register_at_fork(after_in_child=connection.close)
    worker: Worker | None = None

    def build() -> Traits:
        nonlocal worker
        _work_at(*place)
        if memory is not None:
            limit = int(memory * GIB)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        recipe = Recipe(target)
        if not recipe.is_id:
            load(target)  # the arguments may be of its classes
        kwargs, args, spec = pickle.loads(arguments)  # of the process that started this one
        worker = Worker(Recipe(target, kwargs, args, spec), rng)
        return worker.traits()

    _send(connection, _tried(build, lambda: None))
    while worker is not None:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            break
        answer = _tried(partial(worker.answer, request), worker.rng_state)
        if os.getpid() != own:  # a process that the environment forked came back out of it
            os._exit(0)
        _send(connection, answer)
    sys.stdout.flush()
    os._exit(0)


@final
class Worker:
    """The environment, and what may be asked of it."""

    def __init__(self, recipe: Recipe, rng: Any) -> None:  # noqa: ANN401 - a generator's state
        _seed_all(None)
        self._env = recipe.build()
        core = self._env.unwrapped
        self._text = inner_env(self._env) if isinstance(core, LLMEnv) else None
        if rng is not None:
            core.np_random = generator_of(rng)

    def traits(self) -> Traits:
        """Return what the environment is."""
        observation, action = (
            plain_space(getattr(self._env, name)) for name in ("observation_space", "action_space")
        )
        metadata, mode = plain(dict(self._env.metadata)), self._env.render_mode
        return Traits((observation, action), metadata, mode)

    def answer(self, request: bytes) -> Any:  # noqa: ANN401 - any method's
        """Return what a request asks for: a name and arguments, pickled."""
        name, arguments = pickle.loads(request)
        requests: dict[str, Callable[..., Any]] = {
            "reset": self._reset,
            "begin": self._begin,
            "step": self._step,
            "advance": self._advance,
            "solve": self._solve,
            "render": lambda: plain(self._env.render()),
            "call": self._call,
            "restore": self._restore,
            "close": self._env.close,
        }
        return requests[name](*arguments)

    def rng_state(self) -> dict[str, Any] | None:
        """Return the state of the environment's generator, where it has one."""
        generator = getattr(self._env.unwrapped, "_np_random", None)
        return None if generator is None else plain(generator.bit_generator.state)

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, ...]:
        """Begin an episode; return observation, info, and the random states before it."""
        before = _random_states(), self.rng_state()
        if seed is not None:
            _seed_all(seed)
        observation, info = self._env.reset(seed=seed, options=options)
        return plain_observation(observation), plain(info), before

    def _begin(self, seed: int | None, options: dict[str, Any]) -> tuple[Any, ...]:
        """Begin an episode of one of ours; return observation, info and task."""
        if seed is not None:
            _seed_all(seed)
        observation, info = self._env.reset(seed=seed, options=options)
        core = self._env.unwrapped
        assert isinstance(core, LLMEnv)
        return observation, info, core.task

    def _step(self, action: Any) -> tuple[Any, ...]:  # noqa: ANN401 - any space's element
        observation, reward, terminated, truncated, info = self._env.step(action)
        crossed = plain_observation(observation)
        return crossed, _number(reward), bool(terminated), bool(truncated), plain(info)

    def _advance(self, action: str) -> tuple[Any, ...]:
        return self._texts().advance(action)

    def _solve(self) -> str | None:
        return self._texts().solve()

    def _restore(self, states: tuple[Any, ...], rng: Any) -> None:  # noqa: ANN401 - a generator's state
        _set_random_states(states)
        if rng is not None:
            self._env.unwrapped.np_random = generator_of(rng)

    def _texts(self) -> LLMEnv | LLMWrapper:
        if self._text is None:
            raise EnvContractError(
                f"{type(self._env.unwrapped).__name__} is no LLMEnv: it has reset and step alone"
            )
        return self._text

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        attribute = self._env.get_wrapper_attr(name)
        return plain(attribute(*args, **kwargs) if callable(attribute) else attribute)


def generator_of(state: Any) -> np.random.Generator:  # noqa: ANN401 - a bit generator's state
    """Return a generator in a state."""
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)


def _number(reward: Any) -> float:  # noqa: ANN401 - what an environment pays
    if isinstance(reward, str) or np.ndim(reward) != 0:
        raise EnvContractError(f"A reward is a number; step returned {reward!r:.60}")
    return float(reward)


def _tried(function: Callable[[], Any], rng: Callable[[], Any]) -> Answer:
    try:
        value = function()
        return Answer(value, rng())
    except MemoryError:
        gc.collect()
        return Answer(raised="MemoryError", line="MemoryError: the memory limit is reached")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the reader decides what it means
        first = next(iter(str(error).splitlines()), "")
        name = type(error).__name__
        return Answer(raised=name, line=f"{name}: {first}", trace=traceback.format_exc())


def _send(connection: Connection, answer: Answer) -> None:
    """Send an answer, or why it cannot be sent."""
    try:
        data = dumped(answer)
    except EnvContractError as error:
        line = f"EnvContractError: {error}"
        data = dumped(Answer(raised="EnvContractError", line=line))
    connection.send_bytes(data)


def _work_at(path: list[str], folder: str, environment: dict[str, str]) -> None:
    """Find modules and files as the process does that asks: its helper may be older."""
    sys.path[:] = path
    os.chdir(folder)
    os.environ.clear()
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})


def _print_to(descriptor: int) -> None:
    quiet = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((quiet, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    os.close(quiet)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(all_threads=False)
    faulthandler.register(signal.SIGUSR1, all_threads=False)


def _seed_all(seed: int | None) -> None:
    """Seed the generators that libraries share; None takes a seed of the system's."""
    number = int.from_bytes(os.urandom(4), "big") if seed is None else seed % 2**32
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 - the process is the environment's own
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(number)


def _random_states() -> tuple[Any, ...]:
    torch = sys.modules.get("torch")
    own = None if torch is None else torch.random.get_rng_state().numpy()
    return random.getstate(), np.random.get_state(), own  # noqa: NPY002 - see _seed_all


def _set_random_states(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002 - see _seed_all
    torch = sys.modules.get("torch")
    if torch is not None and states[2] is not None:
        torch.random.set_rng_state(torch.from_numpy(states[2].copy()))
