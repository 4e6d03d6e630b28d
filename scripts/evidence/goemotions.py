"""Make the table of docs/results/goemotions.md: what PPO changed in the continuations of comments.

    .venv/bin/python scripts/evidence/goemotions.py RUN OTHER [HEAD]

RUN is a finished run of configs/sentiment_small_cpu.yaml, OTHER a reward model that it was not
trained on, HEAD what counts of OTHER (that of the run by default). The run's model and the one PPO
started from continue the held-out beginnings, drawn at temperature 1 as in training (`llmgym eval
RUN --against base --temperature 1 --json`); everything below is counted from what they said.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

# Python looks for packages in scripts/ and not in the checkout.
sys.path.insert(0, str(Path(__file__).parents[2]))

from llmgym.messages import Completion, Message, Sample, Task
from llmgym.rewards.base import score_samples
from llmgym.rewards.model import RewardModel
from trainers.config.files import read
from trainers.evaluation.statistics import UNKNOWN, interval, paired

ROOT = Path(__file__).parents[2]
TASKS = 128
Row = Mapping[str, Any]


def answers(run: Path) -> list[list[Row]]:
    """Return the rows of the trained model and of the one it started from."""
    asked = ["eval", str(run), "--against", "base", "--n", str(TASKS)]
    output = subprocess.run(
        [sys.executable, "-m", "trainers.cli", *asked, "--temperature", "1.0", "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    line = next(line for line in output.splitlines() if line.startswith("[{"))
    return [evaluation["rows"] for evaluation in json.loads(line)]


def judged(rows: Sequence[Row], judge: RewardModel) -> list[float]:
    """Return what a reward model says of each beginning with its continuation.

    Raises:
        SystemExit: it could not read one.
    """
    samples = []
    for row in rows:
        begun = (Message("assistant", row["prompt"]),)
        task, response = Task(id="", prompt=begun), Completion(row["completion"])
        samples.append(Sample(task=task, messages=begun, response=response, text=str(response)))
    scores = score_samples(judge, samples)
    failed = [score.error for score in scores if score.status != "ok"]
    if failed:
        raise SystemExit(f"{judge.source} could not judge {len(failed)} rows: {failed[0]}")
    return [score.value for score in scores]


def pairs(text: str) -> list[tuple[str, str]]:
    """Return the neighbouring words of a text."""
    words = text.lower().split()
    return list(itertools.pairwise(words))


def distinct_2(rows: Sequence[Row]) -> float:
    """Return different pairs of words / pairs of words, over all continuations together.

    Source: Li et al. 2016, arXiv:1510.03055.
    """
    all_pairs = [pair for row in rows for pair in pairs(row["completion"])]
    return len(set(all_pairs)) / max(1, len(all_pairs))


FIGURES = {
    "words": lambda row: float(len(row["completion"].split())),
    "ended by itself": lambda row: float(row["finish_reason"] == "stop"),
}


def line(name: str, old: Sequence[float], new: Sequence[float]) -> str:
    """Return a row of the table: both means with their 95 % intervals, and the difference."""
    bounds = (0.0, 1.0) if name == "ended by itself" else UNKNOWN
    cells = [f"{fmean(rows):.3f} [{low:.3f}, {high:.3f}]"
             for rows in (old, new) for low, high in [interval(rows, bounds)]]  # fmt: skip
    mean, low, high = paired(new, old)
    return f"| {name} | {' | '.join(cells)} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] |"


def report(before: Sequence[Row], after: Sequence[Row], judges: Mapping[str, RewardModel]) -> str:
    """Return the table, and the rise of each judge's score in deviations of the first model's."""
    lines = [f"| over {len(before)} beginnings | before PPO | after PPO | difference |"]
    lines += ["| --- | --- | --- | --- |"]
    rises = []
    for name, judge in judges.items():
        old, new = judged(before, judge), judged(after, judge)
        lines.append(line(name, old, new))
        rise = (fmean(new) - fmean(old)) / pstdev(old)
        rises.append(f"{name}: {rise:+.2f} standard deviations of the scores before PPO")
    for name, figure in FIGURES.items():
        lines.append(line(name, *([figure(row) for row in rows] for rows in (before, after))))
    old, new = distinct_2(before), distinct_2(after)
    lines.append(f"| distinct-2 | {old:.3f} | {new:.3f} | x {new / old:.3f} |")
    return "\n".join([*lines, "", *rises])


def main() -> None:
    """Print the table, the KL of the last iterations and ten continuations of each model."""
    run, other = Path(sys.argv[1]), sys.argv[2]
    own = read([run / "config.yaml"]).rewards[0]
    head = str(own.kwargs.get("head", "logit"))
    judges = {
        "the reward of the run": RewardModel(str(own.model), **own.kwargs),
        "the other reward model": RewardModel(other, head=[*sys.argv, head][3]),
    }
    after, before = answers(run)
    print(report(before, after, judges))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kls = [row["objective/kl"] for row in map(json.loads, lines) if "objective/kl" in row]
    print(f"\nKL to the reference, last 5 iterations: {fmean(kls[-5:]):.2f} nats per response")
    print("\nThe first ten, as they are:\n")
    for old, new in list(zip(before, after, strict=True))[:10]:
        print(f"- {old['prompt']} ...\n  - before: {old['completion']}")
        print(f"  - after: {new['completion']}")


if __name__ == "__main__":
    main()
