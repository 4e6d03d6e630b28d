"""Make the table of docs/results/gsm8k.md: what PPO changed on 500 held-out problems.

    .venv/bin/python scripts/evidence/gsm8k.py RUN

RUN is a finished run of configs/gsm8k_small_cpu.yaml. Its model and the one PPO started from answer
the first 500 problems of test.jsonl greedily (`llmgym eval RUN --against base --n 500 --json`),
about 3 CPU minutes; everything below is counted from their answers.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from llmgym.rewards.calculator import annotations, share_right
from trainers.evaluation.statistics import UNKNOWN, interval, paired

ROOT = Path(__file__).parents[2]
Row = Mapping[str, Any]


def answers(run: Path) -> list[list[Row]]:
    """Return the rows of the trained model and of the one it started from."""
    asked = ["eval", str(run), "--against", "base", "--n", "500", "--json"]
    output = subprocess.run(
        [sys.executable, "-m", "trainers.cli", *asked],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    line = next(line for line in output.splitlines() if line.startswith("[{"))
    return [evaluation["rows"] for evaluation in json.loads(line)]


FIGURES = {
    "share of annotations that are right": lambda row: share_right(row["completion"]),
    "consistency (right / max(written, reference))": lambda row: row["consistency"],
    "grounded (with numbers of the problem / the same)": lambda row: row["grounded"],
    "annotations written": lambda row: float(len(annotations(row["completion"]))),
    "different annotations written": lambda row: float(row["annotations"]),
    "exact answer": lambda row: float(row["answer"]),
    "format": lambda row: float(row["format"]),
    "characters": lambda row: float(len(row["completion"])),
}
COUNTS = ("annotations written", "different annotations written", "characters")


def shown(name: str, values: Sequence[float]) -> str:
    """Return the mean of a figure with its 95 % interval."""
    low, high = interval(values, UNKNOWN if name in COUNTS else (0.0, 1.0))
    return f"{fmean(values):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print the table, the KL of the last iterations and three answers of each model."""
    run = Path(sys.argv[1])
    after, before = answers(run)
    print("| over 500 questions | before PPO | after PPO | difference |")
    print("| --- | --- | --- | --- |")
    for name, figure in FIGURES.items():
        old, new = [figure(row) for row in before], [figure(row) for row in after]
        mean, low, high = paired(new, old)
        change = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"| {name} | {shown(name, old)} | {shown(name, new)} | {change} |")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kls = [row["objective/kl"] for row in map(json.loads, lines) if "objective/kl" in row]
    print(f"\nKL to the reference, last 5 iterations: {fmean(kls[-5:]):.2f} nats per response")
    for old, new in list(zip(before, after, strict=True))[:3]:
        sample = (f"> {old['prompt']}", "before:", old["completion"], "after:", new["completion"])
        print("\n" + "\n\n".join(sample))


if __name__ == "__main__":
    main()
