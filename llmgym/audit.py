"""An audit of an environment's rewards and manners: what answers earn, and what they disturb.

`llmgym/check.py` holds an environment to its contract; an audit measures one whose author may be
somebody else, and says with figures what a policy could learn from it.
"""

import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, final

import gymnasium
import numpy as np

from llmgym.data.tasks import TaskSource, num_tasks
from llmgym.env import core_env, inner_env
from llmgym.episodes import JUNK, play, same, total, unwarned
from llmgym.errors import LLMGymError
from llmgym.laws import line_of
from llmgym.limits import CallLimit, LateCall, within
from llmgym.messages import Task
from llmgym.processes.slot import ProcessSlot
from llmgym.registry import create, spec
from llmgym.vector import LLMVectorEnv

MAX_TASKS = 500
"""Tasks of each split whose ids and prompts are compared."""
LIMIT_SECONDS = 120.0
"""What one part of an audit may take."""
HALF = 0.5
"""Share of the way from the floor to the top that a wrong answer must not reach on average."""
SLACK = 1e-6


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found of one environment.

    Attributes:
        id: of the environment.
        bounds: the least and the most that it promises to pay.
        gold: share of episodes in which its own solutions earn the most; None without solutions.
        earns: mean reward of each kind of answer that is none, by its name; None where there is no
            such answer.
        raises: share of junk on which it raised or its reward failed.
        overlap: of training and test tasks by id, and by prompt; None where there is no test split.
        touches: what else of the process it changed.
        slots: whether two environments play as each one does alone.
        reset_ms: median of a reset.
        step_ms: median of a step with its score.
        survives: whether a crash of its process cost its own slot only.
        faults: what does not hold, a line each.
    """

    id: str
    bounds: tuple[float, float] = (0.0, 1.0)
    gold: float | None = None
    earns: Mapping[str, float | None] = field(default_factory=dict)
    raises: float = 0.0
    overlap: tuple[int, int] | None = None
    touches: tuple[str, ...] = ()
    slots: bool = True
    reset_ms: float = 0.0
    step_ms: float = 0.0
    survives: bool = True
    faults: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


KINDS = ("empty", "prose", "echo", "wrong label", "another's gold")
"""Answers that are none, in the order of the table."""


def audit(env_id: str, *, episodes: int = 20, **kwargs: Any) -> Audit:
    """Audit a registered environment of text.

    Args:
        env_id: the id.
        episodes: tasks that each kind of answer is tried on.
        kwargs: keyword arguments of the environment.

    Raises:
        gymnasium.error.NameNotFound: the id is unknown.
    """
    make = partial(gymnasium.make, spec(env_id), disable_env_checker=True, **kwargs)
    facts: dict[str, Any] = {"id": env_id}
    faults: list[str] = []
    parts: tuple[Callable[[], tuple[dict[str, Any], list[str]]], ...] = (
        partial(_rewards, make, episodes),
        partial(_overlap, make),
        partial(_touches, make),
        partial(_slots, make),
        partial(_survives, env_id, kwargs),
    )
    limit = CallLimit(LIMIT_SECONDS)
    with unwarned():
        for part in parts:
            try:
                measured, wrong = within(limit, part)
            except LateCall as late:
                faults.append(f"{_name(part)}: {late}")
            except Exception as error:  # noqa: BLE001 - whatever an author's code raises is a fault
                faults.append(f"{_name(part)}: {line_of(error)}")
            else:
                facts |= measured
                faults += wrong
    return Audit(**facts, faults=tuple(faults))


def _name(part: Callable[..., Any]) -> str:
    function = part.func if isinstance(part, partial) else part
    return function.__name__.strip("_").replace("_", " ")


def _rewards(make: Callable[..., gymnasium.Env], episodes: int) -> tuple[dict[str, Any], list[str]]:
    """Measure what answers earn, and how long a reset and a step take."""
    env = make()
    low, high = inner_env(env).reward_bounds
    tasks = _first(core_env(env).tasks, 2 * episodes)
    gold, reset_ms, step_ms = [], [], []
    earned: dict[str, list[float]] = {kind: [] for kind in KINDS}
    num_junk = num_failed = 0
    for index in range(min(episodes, len(tasks))):
        with _timed(reset_ms):
            env.reset(seed=index, options={"index": index})
        if core_env(env).solve() is not None:
            with _timed(step_ms):
                reward = total(play(env, None))
            gold.append(reward is not None and _reaches(reward, high))
        for kind, answer in _answers(env, tasks, index).items():
            num_junk += 1
            reward = _earned(env, index, answer)
            if reward is None:
                num_failed += 1
            else:
                earned[kind].append(reward)
    facts = {
        "bounds": (low, high),
        "gold": statistics.fmean(gold) if gold else None,
        "earns": {
            kind: statistics.fmean(values) if values else None for kind, values in earned.items()
        },
        "raises": num_failed / num_junk if num_junk else 0.0,
        "reset_ms": statistics.median(reset_ms),
        "step_ms": statistics.median(step_ms or [0.0]),
    }
    return facts, [*_reward_faults(facts, low, high)]


def _reward_faults(facts: dict[str, Any], low: float, high: float) -> Iterator[str]:
    if facts["gold"] is not None and np.isfinite(high) and facts["gold"] < 1.0:
        yield f"its own solutions earn {high:g} on {facts['gold']:.0%} of the tasks only"
    if facts["raises"]:
        yield f"it raises, or its reward fails, on {facts['raises']:.1%} of junk"
    floor = 0.0 if low < 0.0 < high else low
    if not (np.isfinite(low) and np.isfinite(high)):
        return
    for kind, mean in facts["earns"].items():
        most = floor if kind in ("empty", "prose") else floor + HALF * (high - floor)
        if mean is not None and mean > most + SLACK:
            yield f"the answer {kind!r} earns {mean:.3g} on average, more than {most:g}"


def _reaches(reward: float, high: float) -> bool:
    return not np.isfinite(high) or abs(reward - high) <= SLACK * max(1.0, abs(high))


def _answers(env: gymnasium.Env, tasks: list[Task], index: int) -> dict[str, str]:
    """Return the answers that are none for a task, by kind; the environment has just begun it."""
    observation, _ = env.reset(seed=index, options={"index": index})
    task = core_env(env).task
    answers = {
        "empty": "",
        "prose": JUNK["prose"],
        "echo": str(observation[-1]["content"]),
    }
    others = [other for other in tasks if other.answer != task.answer]
    if task.answer is not None and others:
        other = others[index % len(others)]
        answers["wrong label"] = str(other.answer)
        if other.solution is not None and other.solution != task.solution:
            answers["another's gold"] = other.solution
    return answers


def _earned(env: gymnasium.Env, index: int, answer: str) -> float | None:
    """Return what an answer earns that is repeated to the end; None where it raises or fails."""
    try:
        env.reset(seed=index, options={"index": index})
        return total(play(env, answer))
    except Exception:  # noqa: BLE001 - counted
        return None


@contextmanager
def _timed(milliseconds: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    milliseconds.append(1000 * (time.perf_counter() - began))


def _first(source: TaskSource, count: int) -> list[Task]:
    size = num_tasks(source)
    return [source[i] for i in range(count if size is None else min(size, count))]


def _overlap(make: Callable[..., gymnasium.Env]) -> tuple[dict[str, Any], list[str]]:
    """Compare the tasks of training and test, where there are both."""
    try:
        test = make(split="test")
    except (LLMGymError, TypeError):
        return {}, []
    training = _first(core_env(make()).tasks, MAX_TASKS)
    held_out = _first(core_env(test).tasks, MAX_TASKS)
    ids = len({task.id for task in training} & {task.id for task in held_out})
    prompts = len({_text(task) for task in training} & {_text(task) for task in held_out})
    faults = [
        f"{count} of {len(held_out)} test tasks are among the training tasks, by {name}"
        for name, count in (("id", ids), ("prompt", 0 if _is_played(test) else prompts))
        if count
    ]
    return {"overlap": (ids, prompts)}, faults


def _is_played(env: gymnasium.Env) -> bool:
    """Tell whether all tasks have one prompt: what differs is hidden, as in a game."""
    tasks = _first(core_env(env).tasks, 10)
    return len({_text(task) for task in tasks}) < len(tasks)


def _text(task: Task) -> str:
    prompt = task.prompt
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)


def _touches(make: Callable[..., gymnasium.Env]) -> tuple[dict[str, Any], list[str]]:
    """Look for what an episode changes of the process, besides the environment."""
    make().close()  # what importing it does is done
    before = _process_state()
    env = make()
    env.reset(seed=0)
    play(env, JUNK["prose"])
    after = _process_state()
    touched = tuple(name for name, value in before.items() if not _is_same(value, after[name]))
    return {"touches": touched}, [f"it changes {name} of the process" for name in touched]


def _process_state() -> dict[str, Any]:
    return {
        "random": random.getstate(),
        "numpy.random": tuple(np.random.get_state())[1:],  # noqa: NPY002 - what is watched
        "the environment variables": dict(os.environ),
        "the current folder": os.getcwd(),
        "signal handlers": {n: signal.getsignal(n) for n in (signal.SIGALRM, signal.SIGTERM)},
        "the recursion limit": sys.getrecursionlimit(),
    }


def _is_same(left: Any, right: Any) -> bool:  # noqa: ANN401 - any part of the state
    if isinstance(left, tuple):
        return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def _slots(make: Callable[..., gymnasium.Env]) -> tuple[dict[str, Any], list[str]]:
    """Play one environment alone, and again while another one plays between its steps."""
    traces = []
    for has_other in (False, True):
        env, other = make(), make()
        env.reset(seed=1)
        other.reset(seed=2)
        trace = []
        for _ in range(3):
            step = play(env, JUNK["prose"], steps=1)
            trace += step
            if step[-1][2] or step[-1][3]:
                break
            if has_other and any(play(other, "1", steps=1)[-1][2:4]):
                other.reset(seed=2)
        traces.append(trace)
    is_alike = same(traces[0], traces[1], core_env(env).reward)
    return {"slots": is_alike}, [] if is_alike else [
        "an episode changes when another one is played"
    ]


def _survives(env_id: str, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """End the process of one slot of two in the middle, and play on."""
    env_spec = spec(env_id)
    build = partial(create, **{**env_spec.kwargs, **kwargs})
    envs = LLMVectorEnv([build] * 2, executor="processes", env_timeout=60.0)
    try:
        envs.reset(seed=0)
        first = envs.envs[0]
        assert isinstance(first, ProcessSlot)
        assert first.client.pid is not None
        os.kill(first.client.pid, signal.SIGKILL)
        _, _, _, _, infos = envs.step([JUNK["prose"]] * 2)
        reasons = infos["stop_reason"].tolist()
        envs.reset(seed=0)
        _, _, _, _, infos = envs.step([JUNK["prose"]] * 2)
        is_well = reasons[0] == "env_error" != reasons[1]
        is_well = is_well and "env_error" not in infos["stop_reason"].tolist()
    finally:
        envs.close()
    return {"survives": is_well}, [] if is_well else ["a crash of one slot cost another one"]
