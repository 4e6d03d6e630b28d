"""Ways of drafting, replayed on a trace: fixed lengths, a threshold of entropy, the best possible.

Speed is the time of plain decoding over the time taken, of all sequences together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from llmgym.speculative.traces import FEATURES, Trace

Rule = Callable[[Trace, int], int]
"""Returns the number of tokens to draft at a position, in [0, K]."""


@final
@dataclass(frozen=True, slots=True)
class Replayed:
    """What a rule comes to.

    Attributes:
        tokens: of all sequences.
        cycles: passes of the target.
        milliseconds: of drafting and verifying.
        drafted: tokens that were drafted.
        accepted: those of them that were kept.
        plain_ms: milliseconds of a token by plain decoding.
    """

    tokens: int
    cycles: int
    milliseconds: float
    drafted: int
    accepted: int
    plain_ms: float

    @property
    def speed(self) -> float:
        """How many times faster than plain decoding."""
        return self.tokens * self.plain_ms / self.milliseconds

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were kept; NaN of none."""
        return self.accepted / self.drafted if self.drafted else float("nan")


def replay(trace: Trace, rule: Rule) -> Replayed:
    """Decode every sequence of a trace by a rule."""
    cycles = drafted = accepted = 0
    spent = 0.0
    for start, end in zip(trace.starts[:-1], trace.starts[1:], strict=True):
        position = int(start)
        while position < end:
            length = rule(trace, position)
            tokens = trace.taken(position, length, int(end))
            cycles, drafted, accepted = cycles + 1, drafted + length, accepted + tokens - 1
            spent += float(trace.cycle_ms[length])
            position += tokens
    return Replayed(int(trace.starts[-1]), cycles, spent, drafted, accepted, trace.plain_ms)


def fixed(length: int) -> Rule:
    """Draft as many tokens in every cycle."""
    return lambda trace, position: length


def entropy_below(threshold: float) -> Rule:
    """Draft until the drafter's entropy is not below a threshold, in nats, or up to K tokens.

    The token whose entropy is too high is drafted too: its distribution is known only then.
    """
    column = FEATURES.index("entropy")

    def rule(trace: Trace, position: int) -> int:
        unsure = np.flatnonzero(trace.draft[position, :, column] >= threshold)
        return int(unsure[0]) + 1 if len(unsure) else trace.longest

    return rule


def best_fixed(trace: Trace) -> tuple[int, Replayed]:
    """Return the fixed length that is fastest on this trace, and what it comes to."""
    every = [replay(trace, fixed(length)) for length in range(trace.longest + 1)]
    length = int(np.argmax([done.speed for done in every]))
    return length, every[length]


def oracle(trace: Trace) -> Rule:
    """Return the fastest rule there is: it knows what will be accepted.

    Dynamic programming from the end: T(p) = min over k of cycle_ms[k] + T(p + taken(p, k)).
    """
    choices = np.zeros(int(trace.starts[-1]), dtype=np.int64)
    for start, end in zip(trace.starts[:-1], trace.starts[1:], strict=True):
        rest = np.zeros(int(end - start) + 1)
        for position in range(int(end) - 1, int(start) - 1, -1):
            times = [
                float(trace.cycle_ms[length])
                + rest[position - start + trace.taken(position, length, int(end))]
                for length in range(trace.longest + 1)
            ]
            choices[position] = int(np.argmin(times))
            rest[position - start] = min(times)
    return lambda _, position: int(choices[position])
