"""Small environments and rewards that the tests of the core share; loaded by address."""

import threading
from typing import final

from llmgym.data.tasks import from_list, procedural
from llmgym.env import LLMEnv, SingleTurnEnv
from llmgym.messages import Completion, Message, Reply, Sample, Score, Task
from llmgym.rewards.base import Reward, UnitReward

WORDS = ("red", "caf\u00e9", "\u4f60\u597d", "blue")
TASKS = tuple(
    Task(id=f"t{i}", prompt=f"Say {word}", answer=word, solution=word, source="toy", level=i % 2)
    for i, word in enumerate(WORDS)
)


@final
class Count(UnitReward):
    """Scores 1 for the answer; counts its calls and the samples of each."""

    name = "count"

    def __init__(self, per_turn=False, collective=False):
        self.per_turn = per_turn
        self.collective = collective
        self.calls = []

    def score(self, samples):
        self.calls.append(len(samples))
        return [
            Score(v, {"match": v, "length": float(len(s.text))})
            for s in samples
            for v in [float(s.text == s.task.answer)]
        ]


@final
class Poison(Reward):
    """Raises for the answer "boom", abstains for "pass", is 1 otherwise."""

    name = "poison"

    def score(self, samples):
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample):
        if sample.text == "boom":
            raise ValueError("the grader broke\nin two lines")
        return Score(0.5, status="abstain") if sample.text == "pass" else 1.0


@final
class Guess(LLMEnv):
    """Find a number in [0, 8): told higher or lower, paid by the environment itself."""

    def __init__(self, reward=None, **kwargs):
        super().__init__(procedural(_guess_task), reward, **kwargs)
        self.low = 0
        self.high = 8

    def prompt(self, task):
        self.low, self.high = 0, 8
        return (Message("user", "Guess a number in [0, 8)"),)

    def reply(self, response: Completion) -> Reply:
        hidden = self.task.answer
        guess = int(response) if response.strip().isdecimal() and response.isascii() else -1
        if guess == hidden:
            return Reply("right", done=True, reward=1.0)
        if guess < hidden:
            self.low = max(self.low, guess + 1)
            return Reply("higher")
        self.high = min(self.high, guess)
        return Reply("lower")

    def state(self):
        return self.low, self.high

    def solve(self):
        return str((self.low + self.high) // 2)


def _guess_task(rng, level):
    hidden = int(rng.integers(8))
    return Task(id=f"guess-{hidden}", prompt="", answer=hidden, source="guess", level=level)


@final
class Fragile(LLMEnv):
    """Raises on "boom", hangs on "hang" until `release` is set, ends on "end"."""

    release = threading.Event()

    def __init__(self, **kwargs):
        super().__init__(from_list(list(TASKS)), **kwargs)

    def reply(self, response):
        if response == "boom":
            raise ZeroDivisionError("the world broke\nbadly")
        if response == "hang":
            self.release.wait(60)
        return Reply("on", done=response == "end", reward=0.25)


def say(reward=None, **kwargs):
    """Build the environment in which a word is repeated."""
    return SingleTurnEnv(TASKS, reward or Count(), **kwargs)


def guess(**kwargs):
    """Build the guessing game."""
    return Guess(**kwargs)
