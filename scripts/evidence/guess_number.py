"""Make the table of docs/results/guess_number.md: several turns, three seeds.

    .venv/bin/python scripts/evidence/guess_number.py [--seeds 0 1 2]

For each seed it runs `llmgym train guess_number --run.seed S` on one thread, about 6 CPU minutes,
and reads the held-out scores that the run itself took. A seed that is done is kept in
runs/evidence/guess-number-S.json and not done again.
"""

import argparse
import json
from typing import Any

from one_thread import KEPT, ROOT, llmgym

SCORE = "eval/llmgym/GuessNumber-v0"


def one_seed(seed: int) -> dict[str, Any]:
    """Return a seed's held-out scores by iteration, KL and CPU seconds."""
    file = KEPT / f"guess-number-{seed}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    run = ROOT / "runs" / file.stem
    arguments = ["train", "guess_number", "--clean", "--name", run.name, "--run.seed", str(seed)]
    seconds = llmgym(file.stem, arguments)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    scores = [row for row in rows if f"{SCORE}/mean" in row]
    record = {
        "scores": {str(row["train/global_step"]): shown(row) for row in scores},
        "kl": [row["objective/kl"] for row in rows if "objective/kl" in row][-1],
        "cpu_seconds": seconds,
    }
    file.write_text(json.dumps(record), encoding="utf-8")
    return record


def shown(row: dict[str, float]) -> str:
    """Return a score with its interval."""
    low, high = row[f"{SCORE}/ci_low"], row[f"{SCORE}/ci_high"]
    return f"{row[f'{SCORE}/mean']:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    KEPT.mkdir(parents=True, exist_ok=True)
    results = {seed: one_seed(seed) for seed in parser.parse_args().seeds}
    steps = list(next(iter(results.values()))["scores"])
    header = ["seed", *(f"iteration {step}" for step in steps), "KL", "CPU seconds"]
    print("|", " | ".join(header), "|")
    print("|", " | ".join(["---"] * len(header)), "|")
    for seed, record in results.items():
        figures = [f"{record['kl']:.1f}", f"{record['cpu_seconds']:.0f}"]
        print("|", " | ".join([str(seed), *record["scores"].values(), *figures]), "|")


if __name__ == "__main__":
    main()
