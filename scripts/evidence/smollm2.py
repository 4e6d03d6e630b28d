"""Make the table of docs/results/smollm2.md: PPO on a real chat model, all weights and LoRA.

    make smollm2
    .venv/bin/python scripts/evidence/smollm2.py [--seeds 0 1 2] [--arms full lora vllm]

For each seed it runs, on one thread,
  full   llmgym train smollm2_instructions --run.seed S
  lora   the same with -c models/lora and --ppo.learning-rate 9e-4
  vllm   as full, its responses written by vLLM (make engines)
About 25 CPU minutes a run, 2.5 hours in all. A run that is done is kept in
runs/evidence/smollm2-ARM-S.json and not done again; one that was stopped goes on from its newest
checkpoint. The run itself scores 512 held-out prompts greedily before and after.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "evidence"
SCORE = "eval/llmgym/Instructions-v0"
ARMS = {
    "full": [],
    "lora": ["-c", "models/lora", "--ppo.learning-rate", "9e-4"],
    "vllm": ["--generation.engine", "vllm"],
}


def one_run(arm: str, seed: int) -> dict[str, Any]:
    """Return the figures of a run, which is done unless it was done before."""
    file = KEPT / f"smollm2-{arm}-{seed}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    run, spent = ROOT / "runs" / file.stem, file.with_suffix(".seconds")
    asked = ["train", "smollm2_instructions", *ARMS[arm], "--name", run.name]
    asked += ["--run.seed", str(seed), *(["--resume"] if run.is_dir() else [])]
    with file.with_suffix(".log").open("a", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.cli", *asked],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        )
        _, status, usage = os.wait4(process.pid, 0)
    before = float(spent.read_text()) if spent.exists() else 0.0
    seconds = before + usage.ru_utime + usage.ru_stime
    spent.write_text(str(seconds))
    if status:
        raise SystemExit(f"llmgym {' '.join(asked)} failed; see {stream.name}")
    record = {**figures(run), "cpu_seconds": seconds}
    file.write_text(json.dumps(record), encoding="utf-8")
    return record


def figures(run: Path) -> dict[str, Any]:
    """Return success before and after with its interval, and the KL of the last iterations."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    scores = [row for row in rows if f"{SCORE}/mean" in row]
    return {
        "before": shown(scores[0]),
        "after": shown(scores[-1]),
        "gain": scores[-1][f"{SCORE}/mean"] - scores[0][f"{SCORE}/mean"],
        "kl": fmean([row["objective/kl"] for row in rows if "objective/kl" in row][-5:]),
    }


def shown(row: dict[str, float]) -> str:
    """Return a score with its interval."""
    low, high = row[f"{SCORE}/ci_low"], row[f"{SCORE}/ci_high"]
    return f"{row[f'{SCORE}/mean']:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["full", "lora"])
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    lines = ["| weights | seed | before | after | gain | KL | CPU seconds |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for seed in options.seeds:
        for arm in options.arms:
            result = one_run(arm, seed)
            cells = [arm, str(seed), result["before"], result["after"], f"{result['gain']:+.3f}"]
            cells += [f"{result['kl']:.1f}", f"{result['cpu_seconds']:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
