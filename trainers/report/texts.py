"""The texts that a report shows: held-out answers before and after, samples, extremes. It chooses.

Which rows are shown is decided by figures alone, never by what would look good: the largest gains
and the largest losses stand side by side.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.checkpoint.manifest import published, sequence_of
from trainers.checkpoint.state_files import read_state
from trainers.loggers.formatting import parts_of, printable
from trainers.run_dir.record import lines

EACH = 4  # rows of a kind
MAX_TEXT_CHARACTERS = 4000
_log = logging.getLogger(__name__)

SampleRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One held-out task, answered before and after PPO."""

    prompt: str
    before: str
    after: str
    reward_before: float
    reward_after: float

    @property
    def gain(self) -> float:
        """Reward after minus reward before."""
        return self.reward_after - self.reward_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All held-out tasks that were answered twice, in numbers, and some of them in full.

    Attributes:
        steps: the iterations they were answered at.
        better, same, worse: tasks by what became of their reward.
        pairs: title -> the tasks shown under it.
    """

    steps: tuple[int, int]
    better: int
    same: int
    worse: int
    pairs: Mapping[str, Sequence[Pair]]


def compare_held_out(run_dir: Path) -> Comparison | None:
    """Return the first and the newest held-out answers that a checkpoint holds; None without."""
    for folder in sorted(published(run_dir / "checkpoints", "ppo"), key=sequence_of, reverse=True):
        try:
            state = read_state(folder, "rank_0")
            evaluations = state["session"]["held_out"]["evaluations"]
            answered = [
                (step, evaluation)
                for step, done in evaluations
                for evaluation in done
                if evaluation["rows"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be read, an older checkpoint is looked at: %s", folder, error)
            continue
        (first, old), (last, new) = (answered[0], answered[-1]) if answered else ((0, {}), (0, {}))
        if first != last:
            return _compared((first, last), old["rows"], new["rows"])
        return None
    return None


def _compared(
    steps: tuple[int, int], old: Sequence[SampleRow], new: Sequence[SampleRow]
) -> Comparison:
    pairs = [
        Pair(
            prompt=readable(first.get("prompt")),
            before=readable(first.get("completion")),
            after=readable(other.get("completion")),
            reward_before=_number(first.get("reward")),
            reward_after=_number(other.get("reward")),
        )
        for first, other in zip(old, new, strict=False)
    ]
    counted = [pair for pair in pairs if math.isfinite(pair.gain)]
    by_gain = sorted(counted, key=lambda pair: -pair.gain)
    better = [pair for pair in by_gain if pair.gain > 0]
    worse = [pair for pair in reversed(by_gain) if pair.gain < 0]
    same = [pair for pair in counted if pair.gain == 0]
    shown = {"Gained most": better, "Lost most": worse, "The first that stayed": same}
    return Comparison(
        steps=steps,
        better=len(better),
        same=len(same),
        worse=len(worse),
        pairs={title: rows[:EACH] for title, rows in shown.items() if rows},
    )


def read_samples(run_dir: Path) -> list[SampleRow]:
    """Return the rows of samples.jsonl; of an iteration seen twice, the last attempt's."""
    newest: dict[int, int] = {}
    rows = [row for row in lines(run_dir / "samples.jsonl") if isinstance(row.get("step"), int)]
    for row in rows:
        newest[row["step"]] = max(newest.get(row["step"], 0), row.get("attempt", 1))
    return [_shown(row) for row in rows if row.get("attempt", 1) == newest[row["step"]]]


def through_time(rows: Sequence[SampleRow]) -> dict[int, list[SampleRow]]:
    """Return the first rows of the first and of the last iteration that was sampled."""
    steps = sorted({row["step"] for row in rows})
    chosen = dict.fromkeys([steps[0], steps[-1]]) if steps else {}
    return {step: [row for row in rows if row["step"] == step][:EACH] for step in chosen}


def extremes(rows: Sequence[SampleRow]) -> dict[str, list[SampleRow]]:
    """Return the rows that were pushed hardest, by the advantage: towards, and away from."""
    counted = [row for row in rows if math.isfinite(row["advantage"])]
    by_advantage = sorted(counted, key=lambda row: -row["advantage"])
    towards = [row for row in by_advantage if row["advantage"] > 0][:EACH]
    away = [row for row in reversed(by_advantage) if row["advantage"] < 0][:EACH]
    return {"Made likelier": towards, "Made less likely": away} if counted else {}


def readable(value: object) -> str:
    """Return text as `printable` does, its middle cut out where it is very long."""
    text = printable(str(value))
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    half = MAX_TEXT_CHARACTERS // 2
    left_out = f"\n[... {len(text) - 2 * half} characters ...]\n"
    return text[:half] + left_out + text[len(text) - half :]


def _shown(row: SampleRow) -> SampleRow:
    figures = {key: _number(row.get(key)) for key in ("reward", "advantage", "kl", "length")}
    return {
        **figures,
        "step": row["step"],
        "prompt": readable(row.get("prompt")),
        "completion": readable(row.get("completion")),
        "finish_reason": readable(row.get("finish_reason")),
        "parts": {readable(name): value for name, value in parts_of(row).items()},
    }


def _number(value: object) -> float:
    """Return a figure; NaN for what is none, such as a reward that failed."""
    return float(value) if isinstance(value, int | float) else math.nan
