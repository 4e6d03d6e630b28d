"""`llmgym/Speculative-v0`: decide how far a small model drafts before the large one verifies.

An episode is a recorded sequence of the target. Each cycle drafts some tokens and verifies them
all; the text is the target's own whatever is decided (`llmgym.speculative.traces`). Two forms:

    cycle    an action per cycle: draft 0 to K tokens
    token    an action per token: 0 verify now, 1 draft one more

Rewards of a cycle that takes t milliseconds and yields n tokens, t1 those of a token by plain
decoding, s the speed of what was played before:

    throughput   n - s t / t1      whose fixed point is the largest speed (Dinkelbach 1967)
    ratio        n t1 / t          the mean of ratios (Learning to Draft, ICLR 2026)
    speed        that of the sequence, at its end: for evaluation

Only the last action of a cycle is paid.
"""

from collections.abc import Mapping
from typing import Any, Literal, final, get_args

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from llmgym.errors import EpisodeOverError, TaskSourceError
from llmgym.speculative.observing import BOUND, OBSERVATION_NAMES, DraftView
from llmgym.speculative.traces import Trace, made_trace, read_trace

Form = Literal["cycle", "token"]
Paid = Literal["throughput", "ratio", "speed"]
MEMORY = 0.8
"""Share that the running speed keeps in an episode."""


@final
class Speculative(gymnasium.Env[np.ndarray, np.integer]):
    """Drafts and verifies along the sequences of a trace.

    Args:
        trace: what is replayed.
        form: an action per cycle or per token.
        paid: the reward of a cycle.

    Attributes:
        speed: times faster than plain decoding, of the episodes so far, the latest most.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, trace: Trace, *, form: Form = "cycle", paid: Paid = "throughput") -> None:
        self.trace = trace
        self._form, self._paid = form, paid
        shape = (len(OBSERVATION_NAMES),)
        self.observation_space = Box(-BOUND, BOUND, shape, np.float32)
        self.action_space = Discrete(trace.longest + 1 if form == "cycle" else 2)
        self.speed = 1.0
        self._position = self._start = self._end = 0
        self._view = self._new_view()
        self._spent = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a sequence.

        Args:
            seed: of the sequence that is drawn.
            options: {"index": number of a sequence} takes that one.

        Raises:
            TaskSourceError: there is no such sequence.
        """
        super().reset(seed=seed)
        index = (options or {}).get("index")
        if index is None:
            index = int(self.np_random.integers(self.trace.num_sequences))
        if not 0 <= index < self.trace.num_sequences:
            raise TaskSourceError(
                f"the trace {self.trace.name} has sequences 0 to {self.trace.num_sequences - 1}, "
                f"got {index}"
            )
        self._start, self._end = (int(self.trace.starts[index + i]) for i in (0, 1))
        self._position, self._view, self._spent = self._start, self._new_view(), 0.0
        self._view.target = self.trace.target[self._start].tolist()
        return self._view.observation(), self._info()

    def step(
        self, action: np.integer | int
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Draft, verify, or both.

        Raises:
            EpisodeOverError: the sequence has ended.
        """
        if self._position >= self._end:
            raise EpisodeOverError("the sequence has ended: reset before another step")
        if self._form == "cycle":
            self._draft(int(action))
        elif int(action):
            self._draft(1)
            if self._view.depth < self.trace.longest:
                return self._view.observation(), 0.0, False, False, self._info()
        reward = self._verify()
        over = self._position >= self._end
        info = self._info()
        if over:
            info["speed"] = self._episode_speed()
            reward = info["speed"] if self._paid == "speed" else reward
            self.speed = MEMORY * self.speed + (1 - MEMORY) * info["speed"]
        return self._view.observation(), reward, over, False, info

    def state_dict(self) -> dict[str, float]:
        """Return the speed so far, which rewards are measured against."""
        return {"speed": self.speed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.speed = float(state["speed"])

    def _new_view(self) -> DraftView:
        trace = self.trace
        return DraftView(
            longest=trace.longest,
            draft_cost=trace.draft_ms / trace.plain_ms,
            verify_cost=float(trace.verify_ms[-1]) / trace.plain_ms,
        )

    def _draft(self, tokens: int) -> None:
        begin = self._view.depth
        self._view.drafted += self.trace.draft[self._position, begin : begin + tokens].tolist()

    def _verify(self) -> float:
        """End a cycle and return its reward."""
        depth = self._view.depth
        tokens = self.trace.taken(self._position, depth, self._end)
        spent = float(self.trace.cycle_ms[depth])
        self._position += tokens
        self._spent += spent
        newest = self.trace.target[min(self._position, self._end - 1)]
        self._view.end_cycle(tokens, newest.tolist())
        if self._paid == "speed":
            return 0.0
        if self._paid == "ratio":
            return tokens * self.trace.plain_ms / spent
        return tokens - self.speed * spent / self.trace.plain_ms

    def _episode_speed(self) -> float:
        return (self._end - self._start) * self.trace.plain_ms / self._spent

    def _info(self) -> dict[str, Any]:
        return {"position": self._position - self._start, "milliseconds": self._spent}


def make(
    *, trace: str | None = None, form: Form = "cycle", paid: Paid = "throughput"
) -> Speculative:
    """Build the environment of a file of drafts.

    Args:
        trace: a file that `write_trace` of `llmgym.speculative.traces` wrote; None for a drawn one,
            in which easy and hard passages alternate.
        form: "cycle", an action per cycle, or "token", an action per drafted token.
        paid: "throughput", "ratio" or "speed".

    Raises:
        TaskSourceError: the file is no trace, or a setting is none of these.
    """
    if form not in get_args(Form) or paid not in get_args(Paid):
        forms, kinds = ", ".join(get_args(Form)), ", ".join(get_args(Paid))
        raise TaskSourceError(
            f"form is one of {forms}, and paid one of {kinds}; got {form!r} and {paid!r}"
        )
    return Speculative(made_trace(0) if trace is None else read_trace(trace), form=form, paid=paid)
