"""What a drafting rule sees, the same in the environment and in decoding."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from llmgym.speculative.traces import FEATURES

BOUND = 20.0
"""Of an observation."""
MEMORY = 0.8
"""Share that the running acceptance keeps in a cycle."""
OBSERVATION_NAMES = (
    *(f"target_{name}" for name in FEATURES),
    *(f"draft_{name}" for name in FEATURES),
    "draft_sum_logprob",
    "depth",
    "acceptance",
    "last_accepted",
    "position",
    "draft_cost",
    "verify_cost",
)


@final
@dataclass
class DraftView:
    """What is known in the middle of a cycle of one sequence.

    Attributes:
        longest: the largest number K of drafted tokens.
        draft_cost: time of a drafted token, of verifying K + 1 tokens: in tokens of plain decoding.
        verify_cost: see `draft_cost`.
        position: tokens that are written.
        target: [F] of the distribution that gave the newest token; zeros before the first.
        drafted: [F] of each token drafted in this cycle.
        acceptance: running share of drafted tokens that were kept.
        last: tokens that the last cycle kept.
    """

    longest: int
    draft_cost: float
    verify_cost: float
    position: int = 0
    target: Sequence[float] = (0.0, 0.0, 0.0)
    drafted: list[Sequence[float]] = field(default_factory=list[Sequence[float]])
    acceptance: float = 0.5
    last: int = 0

    @property
    def depth(self) -> int:
        """Tokens drafted in this cycle."""
        return len(self.drafted)

    def end_cycle(self, tokens: int, target: Sequence[float]) -> None:
        """Take what a cycle yielded: its tokens, and the distribution of the newest."""
        if self.drafted:
            share = (tokens - 1) / self.depth
            self.acceptance = MEMORY * self.acceptance + (1 - MEMORY) * share
        self.position += tokens
        self.last, self.target = tokens - 1, target
        self.drafted = []

    def observation(self) -> np.ndarray:
        """Return the numbers of `OBSERVATION_NAMES` as float32."""
        latest = self.drafted[-1] if self.drafted else [0.0] * len(FEATURES)
        values = [
            *self.target,
            *latest,
            float(sum(features[0] for features in self.drafted)),
            self.depth / self.longest,
            self.acceptance,
            self.last / self.longest,
            float(np.log1p(self.position)),
            self.draft_cost,
            self.verify_cost,
        ]
        return np.clip(np.array(values), -BOUND, BOUND).astype(np.float32)
