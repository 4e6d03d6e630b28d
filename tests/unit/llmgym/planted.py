"""Environments that each break one line of the contract; loaded by address."""

import itertools
import random
import time

import numpy as np

from llmgym.env import LLMEnv, LLMWrapper, SingleTurnEnv
from llmgym.messages import Completion, Reply, Score, Task
from llmgym.rewards.base import Reward, per_sample

TASKS = tuple(
    Task(id=f"p{i}", prompt=f"Say {word}", answer=word, solution=word, source="planted")
    for i, word in enumerate(("red", "green", "blue"))
)
COUNTER = itertools.count()


def exact(sample):
    return float(sample.text == sample.task.answer)


EXACT = per_sample(exact)


def sevens(response):
    return 7.0


class Plain(LLMEnv):
    """A sound environment of one turn; what the others break a little."""

    def __init__(self, tasks=TASKS, reward=EXACT, **kwargs):
        super().__init__(tasks, reward, reward_bounds=(0.0, 1.0), **kwargs)

    def reply(self, response: Completion) -> Reply:
        return Reply(done=True)


def sound(reward="exact", **kwargs):
    return SingleTurnEnv(TASKS, reward, **kwargs)


class DoesNotBuild(Plain):
    def __init__(self, **kwargs):
        raise OSError("the model is not there")


class TruncatesAtOnce(Plain):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.max_turns = 1

    def reply(self, response):
        return Reply("on")


class SharesMessages(Plain):
    def _observe(self):
        self.kept = getattr(self, "kept", None) or super()._observe()
        return self.kept


class OverridesStep(Plain):
    def step(self, action):
        return super().step(action)


class StepWrapper(LLMWrapper):
    def step(self, action):
        return super().step(action)


def wraps_step(**kwargs):
    return StepWrapper(Plain(**kwargs))


class CursorOverTasks(Plain):
    def prompt(self, task):
        return f"{task.prompt} {next(COUNTER)}"


class HoldsALambda(Plain):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.reward_again = lambda sample: 1.0


class ForgetsItsState(Plain):
    def prompt(self, task):
        self.turns = 0
        return task.prompt

    def reply(self, response):
        return Reply(f"{self.turns}", done=self.turns > 3)

    def __getstate__(self):
        return {**vars(self), "turns": 9}


class RaisesOnEmpty(Plain):
    def reply(self, response):
        return Reply(done=bool(response[0]))


class RanksTheBatch(Reward):
    name = "rank"

    def score(self, samples):
        return [position / len(samples) for position in range(len(samples))]


def ranks_the_batch(**kwargs):
    return SingleTurnEnv(TASKS, RanksTheBatch(), **kwargs)


class LastScore(Reward):
    name = "last"

    def __init__(self):
        self.last = ""

    def score(self, samples):
        values = []
        for sample in samples:
            values.append(float(len(sample.text) > len(self.last)))
            self.last = sample.text
        return values


def keeps_the_last_score(**kwargs):
    return SingleTurnEnv(TASKS, LastScore(), **kwargs)


class ReadsTheSlot(LLMWrapper):
    def reset(self, **kwargs):
        self.paid = True
        return super().reset(**kwargs)

    def score_batch(self, samples):
        return [Score(float(vars(self).get("paid", False))) for _ in samples]


def reads_the_slot(**kwargs):
    return ReadsTheSlot(Plain(**kwargs))


class VectorDiffers(LLMWrapper):
    def score_batch(self, samples):
        return [Score(float(len(samples) > 1)) for _ in samples]


def vector_differs(**kwargs):
    return VectorDiffers(Plain(**kwargs))


class WrongSolution(Plain):
    def solve(self):
        return "purple"


def pays_for_junk(**kwargs):
    return SingleTurnEnv(TASKS, per_sample(lambda sample: 1.0), reward_bounds=(0, 1), **kwargs)


def pays_too_much(**kwargs):
    return SingleTurnEnv(
        tuple(Task(id=task.id, prompt=task.prompt) for task in TASKS),
        per_sample(lambda sample: 7.0),
        reward_bounds=(0.0, 1.0),
        **kwargs,
    )


def fails_on_junk(**kwargs):
    """An environment whose reward knows its own answers and raises on all others."""
    worth = {task.answer: 1.0 for task in TASKS}
    return SingleTurnEnv(TASKS, per_sample(lambda sample: worth[sample.text]), **kwargs)


def fails_always(**kwargs):
    return SingleTurnEnv(TASKS, per_sample(lambda sample: 1 / 0), **kwargs)


def returns_none(**kwargs):
    return SingleTurnEnv(TASKS, per_sample(lambda sample: None), **kwargs)


def wants_numbers(**kwargs):
    return SingleTurnEnv(TASKS, "numeric", **kwargs)


class PaysNan(Plain):
    def reply(self, response):
        return Reply(done=True, reward=float("nan"))


class Rounds(Reward):
    """A score in float32 that is added up in another order in another batch."""

    name = "rounds"
    shift = 2.0**-21

    def score(self, samples):
        shift = self.shift * (len(samples) > 1)
        return [float(np.float32(1.2668 + len(one.text) % 7 + shift)) for one in samples]


class Shifts(Rounds):
    name, shift = "shifts", 2.0**-9


def rounds_in_float32(**kwargs):
    return SingleTurnEnv(TASKS, Rounds(), **kwargs)


def shifts_in_float32(**kwargs):
    return SingleTurnEnv(TASKS, Shifts(), **kwargs)


class GlobalRandom(Plain):
    def reply(self, response):
        random.random()
        return Reply(done=True)


class GlobalNumpy(Plain):
    def prompt(self, task):
        np.random.seed(3)  # noqa: NPY002
        return task.prompt


class SharedState(Plain):
    seen = []  # noqa: RUF012

    def reply(self, response):
        self.seen.append(response)
        return Reply(str(len(self.seen)), done=True)


class SlowReset(Plain):
    def prompt(self, task):
        began = time.monotonic()
        while time.monotonic() - began < 0.03:
            pass
        return task.prompt
