"""Make the table of docs/results/quickstart.md: PPO against two controls, three seeds.

    .venv/bin/python scripts/evidence/quickstart.py [--seeds 0 1 2] [--jobs 2]

For each seed it runs, one thread each and `--jobs` at a time,
  ppo       llmgym train quickstart --run.seed S
  sft       llmgym sft quickstart --run.seed S with as many more epochs over the same demonstrations
            as take the CPU seconds of `ppo`
  constant  llmgym train quickstart --run.seed S with a reward that is always 0
About 8 CPU minutes a run, 70 in all. What is done is kept in runs/evidence/*.json and not done
again, so it may be stopped and started at any time.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from one_thread import KEPT, ROOT, llmgym

from trainers.evaluation.statistics import interval

STARTUP_SECONDS = 12.0
"""CPU seconds of imports, which the controls need as well and which teach nothing."""


ENVIRONMENT = "llmgym/Arithmetic-v0"
TASKS = 512
STEPS_AN_EPOCH = 16
"""Optimizer steps of the warm start's epoch: 1,000 demonstrations in batches of 64."""

Record = dict[str, Any]


def accuracy(name: str, model: Path) -> Record:
    """Return the share of sums that a model gets right, greedily, whatever its run was paid for."""
    asked = ["eval", str(model), "--env", ENVIRONMENT, "--n", str(TASKS), "--json"]
    llmgym(name, asked)
    lines = (KEPT / f"{name}.log").read_text(encoding="utf-8").splitlines()
    rows = json.loads(next(line for line in lines if line.startswith("[{")))[0]["rows"]
    right = [float(row["completion"].strip() == str(total(row["prompt"]))) for row in rows]
    low, high = interval(right, (0.0, 1.0))
    return {"mean": sum(right) / len(right), "ci_low": low, "ci_high": high}


def total(prompt: str) -> int:
    """Return the sum that a prompt such as "37 + 58 =" asks for."""
    return sum(int(word) for word in prompt.split() if word.isdigit())


def once(name: str, verb: str, extra: list[str]) -> Record:
    """Train and evaluate a run, unless that was done before."""
    file, run = KEPT / f"{name}.json", ROOT / "runs" / f"evidence-{name}"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    seconds = llmgym(name, [verb, "quickstart", "--clean", "--name", run.name, *extra])
    accuracies = {part: accuracy(f"{name}-{part}", run / part) for part in ("base", "model")}
    record = {"cpu_seconds": seconds, **accuracies}
    file.write_text(json.dumps(record), encoding="utf-8")
    return record


def one_seed(seed: int) -> dict[str, Record]:
    """Run the three arms of a seed."""
    seeded = ["--run.seed", str(seed)]
    ppo = once(f"ppo-{seed}", "train", seeded)
    constant = once(f"constant-{seed}", "train", [*seeded, "--rewards.0.name", "constant"])
    warm = once(f"warm-{seed}", "sft", seeded)
    ratio = (ppo["cpu_seconds"] - STARTUP_SECONDS) / (warm["cpu_seconds"] - STARTUP_SECONDS)
    epochs = round(warm_steps(seed) * ratio / STEPS_AN_EPOCH)
    longer = ["--sft.num-epochs", str(epochs), "--sft.stop-loss", "null"]
    return {
        "ppo": ppo,
        "constant": constant,
        "sft": {**once(f"sft-{seed}", "sft", [*seeded, *longer]), "base": warm["model"]},
    }


def warm_steps(seed: int) -> int:
    """Return the optimizer steps after which the warm start of a seed ended."""
    metrics = ROOT / "runs" / f"evidence-warm-{seed}" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return int(max(row.get("sft/step", 0) for row in rows))


def shown(score: Record) -> str:
    """Return a score with its interval."""
    return f"{score['mean']:.3f} [{score['ci_low']:.3f}, {score['ci_high']:.3f}]"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip(options.seeds, pool.map(one_seed, options.seeds), strict=True))
    print("| seed | arm | after the warm start | at the end | CPU seconds |")
    print("| --- | --- | --- | --- | --- |")
    for seed, arms in results.items():
        for arm, record in arms.items():
            cells = [str(seed), arm, shown(record["base"]), shown(record["model"])]
            print("|", " | ".join([*cells, f"{record['cpu_seconds']:.0f}"]), "|")


if __name__ == "__main__":
    main()
