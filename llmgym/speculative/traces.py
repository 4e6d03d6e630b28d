"""Traces of speculative decoding: what a drafter proposes at each position of a target's own text.

Lossless greedy decoding follows the target's own text whatever is drafted. So a draft of K tokens
recorded at every position holds all that any way of drafting can meet, and replaying it equals
decoding. Time is a table, so a replay costs no model and gives the same every time:

    a cycle that drafts k tokens takes k * draft_ms + verify_ms[k], and yields accepted + 1 tokens

Shapes: P positions of all sequences end to end, K drafted tokens at most, F features.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np

from llmgym.errors import TaskSourceError

FEATURES = ("logprob", "entropy", "margin")
"""Of a distribution: log-probability of its best token, entropy, and by how much the best token's
log-probability is above the second's; all in nats."""
ARRAYS = ("starts", "accepted", "target", "draft", "verify_ms")


@final
@dataclass(frozen=True)
class Trace:
    """A recording.

    Attributes:
        name: of the pair of models.
        starts: [S + 1] first position of each sequence, and P.
        accepted: [P] how many of the K tokens drafted there the target agrees with, from the first
            on.
        target: [P, F] of the target's distribution that gave the token before this position.
        draft: [P, K, F] of the drafter's distribution of each drafted token.
        draft_ms: milliseconds of a drafted token.
        verify_ms: [K + 1] milliseconds of the target over k + 1 tokens; k = 0 is plain decoding.
    """

    name: str
    starts: np.ndarray
    accepted: np.ndarray
    target: np.ndarray
    draft: np.ndarray
    draft_ms: float
    verify_ms: np.ndarray

    def __post_init__(self) -> None:
        """Check that the arrays belong together.

        Raises:
            TaskSourceError: they do not.
        """
        positions, drafted = self.draft.shape[:2]
        expected = {
            "accepted": (positions,),
            "target": (positions, len(FEATURES)),
            "draft": (positions, drafted, len(FEATURES)),
            "verify_ms": (drafted + 1,),
        }
        wrong = [name for name, shape in expected.items() if getattr(self, name).shape != shape]
        ordered = len(self.starts) > 1 and self.starts[0] == 0 and self.starts[-1] == positions
        if wrong or not ordered or np.any(np.diff(self.starts) < 1):
            raise TaskSourceError(
                f"the trace {self.name} does not fit together: {', '.join(wrong) or 'starts'} of "
                f"{positions} positions and {drafted} drafted tokens. Record it again."
            )
        if np.any(self.accepted < 0) or np.any(self.accepted > drafted):
            raise TaskSourceError(f"the trace {self.name} accepts more tokens than it drafts")
        if self.draft_ms <= 0 or np.any(self.verify_ms <= 0):
            raise TaskSourceError(f"the trace {self.name} has times that are not above 0")

    @property
    def longest(self) -> int:
        """The largest number K of drafted tokens."""
        return self.draft.shape[1]

    @property
    def num_sequences(self) -> int:
        """How many sequences were recorded."""
        return len(self.starts) - 1

    @cached_property
    def cycle_ms(self) -> np.ndarray:
        """Milliseconds [K + 1] of a cycle that drafts k tokens."""
        return np.arange(self.longest + 1) * self.draft_ms + self.verify_ms

    @property
    def plain_ms(self) -> float:
        """Milliseconds of a token by plain decoding."""
        return float(self.verify_ms[0])

    def taken(self, position: int, drafted: int, end: int) -> int:
        """Return the tokens that a cycle yields: those accepted and one more, up to the end."""
        return min(int(self.accepted[position]), drafted, end - position - 1) + 1


def write_trace(path: str | Path, trace: Trace) -> None:
    """Write a trace as a file of arrays."""
    arrays = {name: getattr(trace, name) for name in ARRAYS}
    header = json.dumps({"name": trace.name, "draft_ms": trace.draft_ms})
    np.savez_compressed(path, header=np.array(header), **arrays)


def read_trace(path: str | Path) -> Trace:
    """Read what `write_trace` wrote.

    Raises:
        TaskSourceError: there is no such file, or it is none of a trace.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in ARRAYS}
    except (OSError, KeyError, ValueError) as error:
        raise TaskSourceError(
            f"{path} is no trace of drafts: {error}. `write_trace` of llmgym.speculative.traces "
            "writes one."
        ) from error
    return Trace(name=header["name"], draft_ms=float(header["draft_ms"]), **arrays)


def made_trace(
    seed: int, *, sequences: int = 64, length: int = 64, longest: int = 8, draft_ms: float = 0.2
) -> Trace:
    """Draw a trace in which easy and hard passages alternate; no model is behind it.

    In an easy passage a drafted token is accepted with probability 0.92, in a hard one with 0.25;
    a passage lasts 12 positions on average. Features say which it is, with noise. A pass of the
    target takes 1 ms and 0.06 ms more for each further token.
    """
    rng = np.random.default_rng(seed)
    positions = sequences * length
    change = rng.random(positions) < 1 / 12
    easy = (np.cumsum(change) + rng.integers(2)) % 2 == 0
    hits = rng.random((positions, longest)) < np.where(easy, 0.92, 0.25)[:, None]
    accepted = np.cumprod(hits, axis=1).sum(1)
    sure = np.where(easy, 1.0, -1.0)

    def features(shape: tuple[int, ...], signal: np.ndarray) -> np.ndarray:
        noisy = signal[..., None] + rng.normal(0, 0.7, (*shape, 1))
        entropy = np.log1p(np.exp(-2 * noisy))
        return np.concatenate([-entropy / 2, entropy, np.exp(noisy)], axis=-1)

    own = np.where(hits, 0.4, -0.4) + sure[:, None]
    return Trace(
        name="made",
        starts=np.arange(0, positions + 1, length),
        accepted=accepted,
        target=features((positions,), sure).astype(np.float32),
        draft=features((positions, longest), own).astype(np.float32),
        draft_ms=draft_ms,
        verify_ms=1.0 + 0.06 * np.arange(longest + 1),
    )
