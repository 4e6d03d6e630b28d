"""The contract of an environment, one law for each promise: Gymnasium's `check_env`, then ours.

A law yields a line for each failure, which says what failed and what to change.
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

from llmgym.data.tasks import disjoint
from llmgym.env import LLMEnv, LLMWrapper, core_env, inner_env
from llmgym.episodes import JUNK, play, played, same, total
from llmgym.errors import TaskSourceError
from llmgym.messages import Sample
from llmgym.rewards.rounding import tolerance
from llmgym.rewards.verdict import UNCUT
from llmgym.step import StepInfo

RESET_SECONDS = 1.0
SLACK = 1e-6
"""How far a sum of rewards may lie beyond a bound, as a share of it."""

_UNLIKELY_SEED = 2_718_281_828


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


def _gymnasium(subject: Subject) -> Iterator[str]:
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        try:
            check_env(subject.make().unwrapped)
        except Exception as error:  # noqa: BLE001 - the checker raises what it finds
            yield f"{line_of(error)}. Gymnasium's check_env says what to change"
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
        yield f"{line_of(error)}. Keep functions at the top of a module, and handles out of the env"
        return
    reward = core_env(env).reward
    if not same(play(env, JUNK["prose"]), play(copy, JUNK["prose"]), reward):
        yield "a pickled copy plays on differently. Keep the whole state of an episode in self"


def _actions(subject: Subject) -> Iterator[str]:
    env = subject.make()
    for name, action in JUNK.items():
        env.reset(seed=0)
        try:
            obs, reward, *_ = env.step(action)
        except Exception as error:  # noqa: BLE001 - whatever an author's code raises is a finding
            yield f"{name} raises {line_of(error)}. Reply to it, or score it low"
            continue
        if obs not in env.observation_space or not math.isfinite(reward):
            yield f"{name} gives reward {reward} or an observation outside of the space"


def _rewards(subject: Subject) -> Iterator[str]:
    env = subject.make()
    failed: list[str] = []
    tried = 0
    for name, action in [*JUNK.items(), *[("the solution", None)] * subject.episodes]:
        env.reset(seed=tried)
        if action is None and core_env(env).solve() is None:
            continue
        tried += 1
        info = played(env, action)[-1][1][-1]
        error = str(info.get("reward_error"))
        if not info["reward_valid"] and not (name == "100,000 characters" and UNCUT in error):
            failed.append(f"first on {name}: {error}")
    if failed:
        yield (
            f"the reward failed on {len(failed)} of {tried} episodes, {failed[0].rstrip('.')}. "
            "Score every response: one that fails leaves the loss, and too many stop a run"
        )


def _scores(subject: Subject) -> Iterator[str]:
    env = inner_env(subject.make())
    samples = _samples(env, subject.episodes)
    together = [score.value for score in env.score_batch(samples)]
    alone = [env.score_batch([sample])[0].value for sample in samples]
    within = tolerance(together, core_env(env).reward)
    if not np.allclose(together, alone, atol=within, rtol=0):
        yield "a batch scores differently from its samples alone. Score a sample by itself"
    order = np.random.default_rng(0).permutation(len(samples))
    shuffled = [score.value for score in env.score_batch([samples[i] for i in order])]
    if not np.allclose([together[i] for i in order], shuffled, atol=within, rtol=0):
        yield "a shuffled batch scores differently. Keep no state between samples, or last_score"
    fresh = inner_env(subject.make())
    again = [score.value for score in fresh.score_batch(samples)]
    if not np.allclose(together, again, atol=within, rtol=0):
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
        info = StepInfo.of(infos, slot)
        step = (observations[slot], rewards[slot], terminated[slot], truncated[slot], info.valid)
        if info.stop_reason == "env_error":
            yield f"slot {slot} of a vector raised {info.error}"
        elif not same([step], play(env, action, steps=1), core_env(env).reward):
            yield "a step in a vector differs from one alone. Override advance or score_batch"
    envs.close()


def _bounds(subject: Subject) -> Iterator[str]:
    env = subject.make()
    low, high = inner_env(env).reward_bounds
    slack = SLACK * max((abs(bound) for bound in (low, high) if math.isfinite(bound)), default=1.0)
    for seed in range(subject.episodes):
        env.reset(seed=seed)
        solution = core_env(env).solve()
        gold = total(play(env, None)) if solution is not None else None
        if gold is not None and math.isfinite(high) and abs(gold - high) > slack:
            yield (
                f"solve() earns {gold} with seed {seed}, and reward_bounds promise {high}. Correct "
                "the solution, the reward or the bounds"
            )
            return
        for name, action in JUNK.items():
            env.reset(seed=seed)
            junk = total(play(env, action))
            if junk is None:
                continue
            if not low - slack <= junk <= high + slack:
                yield f"{name} earns {junk}, outside of reward_bounds {low, high}"
                return
            floor = 0.0 if low < 0.0 < high else low  # where wrong answers cost, junk earns nothing
            if gold is not None and math.isfinite(low) and junk > floor + slack:
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
        play(env, JUNK["prose"])
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
    expected = play(alone, JUNK["prose"])
    mixed.reset(seed=1)
    other.reset(seed=2)
    play(other, JUNK["prose"], steps=2)
    if not same(expected, play(mixed, JUNK["prose"]), core_env(alone).reward):
        yield "an episode changes when another slot plays. Keep state in self, set up in prompt()"


def _disjoint(subject: Subject) -> Iterator[str]:
    if subject.held_out is None:
        return
    held_out = core_env(subject.make(**subject.held_out)).tasks
    try:
        disjoint(core_env(subject.make()).tasks, held_out, cap=1000)
    except TaskSourceError as error:
        yield line_of(error)


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
        yield f"the specification does not serialise: {line_of(error)}. Give addresses, plain JSON"
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
    "rewards": _rewards,
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


def _samples(env: LLMEnv | LLMWrapper, count: int) -> list[Sample]:
    junk = list(JUNK.values())
    samples = []
    for seed in range(count):
        env.reset(seed=seed)
        gold = core_env(env).solve()
        action = gold if gold is not None and seed % 2 == 0 else junk[seed % len(junk)]
        samples.append(env.advance(action)[3])
    return samples


def line_of(error: BaseException) -> str:
    """Return the class and the first line of an error."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first.rstrip('.')}"
