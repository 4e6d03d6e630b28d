"""The contract of an environment, executed: Gymnasium's `check_env`, then ours.

Every line that comes back says what failed and what to change; no lines means that it passed.
"""

import contextlib
import io
import math
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from llmgym.env import LLMEnv, LLMWrapper, core_env, inner_env
from llmgym.errors import TaskSourceError
from llmgym.messages import Sample
from llmgym.tasks import disjoint

RESET_SECONDS = 1.0
TOLERANCE = 1e-6
MAX_STEPS = 64
_UNLIKELY_SEED = 2_718_281_828

# Responses that every environment must survive and no grader may pay for.
JUNK = {
    "an empty action": "",
    "Unicode": "caf\u00e9 \u4f60\u597d \U0001f600 \u202e \x00",
    "100,000 characters": "<think>(" * 12_500,
    "a malformed tool call": '<tool_call>{"name": "no such tool", "arguments": [}</tool_call>',
    "prose": "I do not know what you mean by that.",
}

Trace = list[tuple[Any, float, bool, bool]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is checked: an id, its keyword arguments, and over how many seeds."""

    id: str
    kwargs: Mapping[str, Any]
    episodes: int
    held_out: Mapping[str, Any] | None

    def make(self, **kwargs: Any) -> gymnasium.Env:
        """Build one environment without Gymnasium's passive checker, which only warns."""
        return gymnasium.make(self.id, disable_env_checker=True, **{**self.kwargs, **kwargs})


def check(
    env_id: str,
    *,
    episodes: int = 20,
    held_out: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> list[str]:
    """Check a registered environment and return one line for each failure.

    Args:
        env_id: the id.
        episodes: seeds that the gold answer, junk and the order of tasks are tried with.
        held_out: keyword arguments of the validation instance, whose tasks must not overlap; None
            compares nothing.
        kwargs: keyword arguments of the environment.
    """
    subject = Subject(id=env_id, kwargs=kwargs, episodes=episodes, held_out=held_out)
    try:
        subject.make().close()
    except Exception as error:  # noqa: BLE001 - whatever an author's code raises is a finding
        return [f"builds: {_line(error)}. Every id must build with these arguments: {kwargs}"]
    return [f"{name}: {line}" for name, law in LAWS.items() for line in _lines(law, subject)]


def _lines(law: Callable[[Subject], Iterator[str]], subject: Subject) -> Iterator[str]:
    try:
        yield from law(subject)
    except Exception as error:  # noqa: BLE001 - whatever an author's code raises is a finding
        yield f"{_line(error)}. Make this case work"


def _gymnasium(subject: Subject) -> Iterator[str]:
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        try:
            check_env(subject.make().unwrapped)
        except Exception as error:  # noqa: BLE001 - the checker raises what it finds
            yield f"{_line(error)}. Gymnasium's check_env says what to change"
    for warning in caught:
        yield f"{warning.message}. Gymnasium's check_env warns; leave no warning"


def _final(subject: Subject) -> Iterator[str]:
    layer = inner_env(subject.make())
    while isinstance(layer, LLMWrapper):
        if type(layer).step is not LLMWrapper.step:
            name = type(layer).__name__
            yield f"{name} overrides step. Override advance or score_batch, so a vector sees it too"
        layer = layer.inner
    for name in ("reset", "advance", "score_batch", "step"):
        if getattr(type(layer), name) is not getattr(LLMEnv, name):
            yield (
                f"{type(layer).__name__} overrides {name}. Write prompt and reply instead; what a "
                "response earns is the reward's"
            )


def _seeds(subject: Subject) -> Iterator[str]:
    first, second = subject.make(), subject.make()
    for seed in range(subject.episodes):
        prompts = [(env.reset(seed=seed)[0], env.reset()[0]) for env in (first, second, first)]
        if prompts.count(prompts[0]) != len(prompts):
            yield (
                f"seed {seed} gives different prompts. Draw from self.np_random only, and keep no "
                "cursor over the tasks"
            )
            return


def _fresh_data(subject: Subject) -> Iterator[str]:
    env = subject.make()
    seen: list[Any] = []
    for obs in (env.reset(seed=0)[0], env.step(JUNK["prose"])[0], env.reset(seed=0)[0]):
        if any(message is earlier for message in obs for earlier in seen):
            yield "two observations share a message dict. Return new ones: Message.as_dict()"
            return
        seen += obs


def _pickles(subject: Subject) -> Iterator[str]:
    env = subject.make()
    env.reset(seed=0)
    try:
        copy = pickle.loads(pickle.dumps(env))
    except Exception as error:  # noqa: BLE001 - pickling raises what it finds
        yield f"{_line(error)}. Keep functions at the top of a module, and handles out of the env"
        return
    if not _same(_play(env, JUNK["prose"]), _play(copy, JUNK["prose"])):
        yield "a pickled copy plays on differently. Keep the whole state of an episode in self"


def _actions(subject: Subject) -> Iterator[str]:
    env = subject.make()
    for name, action in JUNK.items():
        env.reset(seed=0)
        try:
            obs, reward, *_ = env.step(action)
        except Exception as error:  # noqa: BLE001 - whatever an author's code raises is a finding
            yield f"{name} raises {_line(error)}. Reply to it, or score it low"
            continue
        if obs not in env.observation_space or not math.isfinite(reward):
            yield f"{name} gives reward {reward} or an observation outside of the space"


def _scores(subject: Subject) -> Iterator[str]:
    env = inner_env(subject.make())
    samples = _samples(env, subject.episodes)
    together = [score.value for score in env.score_batch(samples)]
    alone = [env.score_batch([sample])[0].value for sample in samples]
    if not np.allclose(together, alone, atol=TOLERANCE, rtol=0):
        yield "a batch scores differently from its samples alone. Score a sample by itself"
    order = np.random.default_rng(0).permutation(len(samples))
    shuffled = [score.value for score in env.score_batch([samples[i] for i in order])]
    if not np.allclose([together[i] for i in order], shuffled, atol=TOLERANCE, rtol=0):
        yield "a shuffled batch scores differently. Keep no state between samples, or last_score"
    fresh = inner_env(subject.make())
    if not np.allclose(together, [s.value for s in fresh.score_batch(samples)], atol=TOLERANCE):
        yield "another slot scores the same samples differently. Read the sample, never the slot"


def _vector(subject: Subject) -> Iterator[str]:
    envs = gymnasium.make_vec(subject.id, num_envs=4, **subject.kwargs)
    singles = [subject.make() for _ in range(4)]
    observations, _ = envs.reset(seed=0)
    prompts = [env.reset(seed=seed)[0] for seed, env in enumerate(singles)]
    if list(observations) != prompts:
        yield "a vector's prompts differ from those of single environments with the same seeds"
        return
    actions = [core_env(env).solve() or JUNK["prose"] for env in singles]
    actions[1] = JUNK["prose"]
    observations, rewards, terminated, truncated, infos = envs.step(actions)
    for slot, (env, action) in enumerate(zip(singles, actions, strict=True)):
        got = (observations[slot], rewards[slot], terminated[slot], truncated[slot])
        if infos["stop_reason"][slot] == "env_error":
            yield f"slot {slot} of a vector raised {infos['reward_error'][slot]}"
        elif not _same([got], _play(env, action, steps=1)):
            yield "a step in a vector differs from one alone. Override advance or score_batch"
    envs.close()


def _bounds(subject: Subject) -> Iterator[str]:
    env = subject.make()
    low, high = inner_env(env).reward_bounds
    for seed in range(subject.episodes):
        env.reset(seed=seed)
        solution = core_env(env).solve()
        gold = _total(_play(env, None)) if solution is not None else None
        if gold is not None and math.isfinite(high) and abs(gold - high) > TOLERANCE:
            yield (
                f"solve() earns {gold} with seed {seed}, and reward_bounds promise {high}. Correct "
                "the solution, the reward or the bounds"
            )
            return
        for name, action in JUNK.items():
            env.reset(seed=seed)
            junk = _total(_play(env, action))
            if not low - TOLERANCE <= junk <= high + TOLERANCE:
                yield f"{name} earns {junk}, outside of reward_bounds {low, high}"
                return
            floor = 0.0 if low < 0.0 < high else low  # where wrong answers cost, junk earns nothing
            if gold is not None and math.isfinite(low) and junk > floor + TOLERANCE:
                yield (
                    f"{name} earns {junk}, above the floor {floor}. A grader must not pay for junk"
                )
                return


def _global_random(subject: Subject) -> Iterator[str]:
    saved = random.getstate(), np.random.get_state()  # noqa: NPY002 - what is watched
    try:
        random.seed(_UNLIKELY_SEED)
        np.random.seed(_UNLIKELY_SEED)  # noqa: NPY002 - so that seeding it again is seen
        before = _global_state()
        env = subject.make()
        env.reset(seed=0)
        _play(env, JUNK["prose"])
        touched = _global_state() != before
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002 - as it was
    if touched:
        yield "random or numpy.random was used or seeded. Draw from self.np_random only"


def _global_state() -> tuple[Any, bytes]:
    return random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002 - what is watched


def _slots(subject: Subject) -> Iterator[str]:
    alone, other, mixed = subject.make(), subject.make(), subject.make()
    alone.reset(seed=1)
    expected = _play(alone, JUNK["prose"])
    mixed.reset(seed=1)
    other.reset(seed=2)
    _play(other, JUNK["prose"], steps=2)
    if not _same(expected, _play(mixed, JUNK["prose"])):
        yield "an episode changes when another slot plays. Keep state in self, set up in prompt()"


def _disjoint(subject: Subject) -> Iterator[str]:
    if subject.held_out is None:
        return
    held_out = core_env(subject.make(**subject.held_out)).tasks
    try:
        disjoint(core_env(subject.make()).tasks, held_out, cap=1000)
    except TaskSourceError as error:
        yield _line(error)


def _reset_time(subject: Subject) -> Iterator[str]:
    env = subject.make()
    env.reset(seed=0)
    began = time.monotonic()
    env.reset()
    seconds = time.monotonic() - began
    if seconds > RESET_SECONDS:
        yield f"reset takes {seconds:.1f} s, over {RESET_SECONDS} s. Load once, not in prompt()"


def _spec(subject: Subject) -> Iterator[str]:
    spec = subject.make().spec
    assert spec is not None
    try:
        again = EnvSpec.from_json(spec.to_json())
        same = again.kwargs == spec.kwargs
        again.make().close()
    except Exception as error:  # noqa: BLE001 - whatever breaks is the finding
        yield f"the specification does not serialise: {_line(error)}. Give addresses, plain JSON"
        return
    if not same:
        yield "the specification changes in JSON. Register plain JSON: lists, not tuples"


LAWS: dict[str, Callable[[Subject], Iterator[str]]] = {
    "gymnasium": _gymnasium,
    "final methods": _final,
    "seeds": _seeds,
    "fresh data": _fresh_data,
    "pickles": _pickles,
    "actions": _actions,
    "scores": _scores,
    "vector": _vector,
    "bounds": _bounds,
    "global random": _global_random,
    "slots": _slots,
    "disjoint": _disjoint,
    "reset time": _reset_time,
    "specification": _spec,
}
"""The laws by name, in the order in which they are tried."""


def _play(env: gymnasium.Env, action: str | None, steps: int = MAX_STEPS) -> Trace:
    """Play an episode that was reset, with one action or, for None, with `solve()`."""
    trace: Trace = []
    for _ in range(steps):
        response = core_env(env).solve() or "" if action is None else action
        obs, reward, terminated, truncated, _ = env.step(response)
        trace.append((obs, float(reward), terminated, truncated))
        if terminated or truncated:
            break
    return trace


def _samples(env: LLMEnv | LLMWrapper, count: int) -> list[Sample]:
    junk = list(JUNK.values())
    samples = []
    for seed in range(count):
        env.reset(seed=seed)
        gold = core_env(env).solve()
        action = gold if gold is not None and seed % 2 == 0 else junk[seed % len(junk)]
        samples.append(env.advance(action)[3])
    return samples


def _total(trace: Trace) -> float:
    return float(sum(reward for _, reward, _, _ in trace))


def _same(left: Trace, right: Trace) -> bool:
    if len(left) != len(right):
        return False
    pairs = zip(left, right, strict=True)
    return all(
        a[0] == b[0] and abs(a[1] - b[1]) <= TOLERANCE and tuple(a[2:]) == tuple(b[2:])
        for a, b in pairs
    )


def _line(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first.rstrip('.')}"
