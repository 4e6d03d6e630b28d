"""Builds the samples that the tests of rewards score, and a reward that returns anything."""

import os
import select

from llmgym.messages import Completion, Sample, Task
from llmgym.rewards.base import Reward, score_samples


def sample(response, answer=None, *, group=0, over=True, source="here", turn=0, **columns):
    """Make one finished sample (or, with `over` false, one within an episode)."""
    task = Task(id="t1", prompt="What?", answer=answer, source=source, meta=columns)
    return Sample(
        task=task,
        messages=(),
        response=Completion(response),
        text=response,
        terminated=over,
        group=group,
        turn=turn,
    )


class Returns(Reward):
    """Returns what it is told to, and counts its calls."""

    name = "returns"

    def __init__(self, what, per_turn=False, collective=False):
        self.what, self.calls = what, []
        self.per_turn, self.collective = per_turn, collective

    def score(self, samples):
        self.calls.append(len(samples))
        return self.what(samples) if callable(self.what) else self.what


def scored(reward, *responses):
    """Score responses in one batch, under the error policy."""
    return score_samples(reward, [sample(one) for one in responses])


def is_gone(pid, seconds=10.0):
    """Wait until a process has ended, by a handle of the kernel; False if it does not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = bool(select.select([handle], [], [], seconds)[0])
    os.close(handle)
    return ended
