"""Measure PPO on CartPole against Stable-Baselines3, one thread, in turns: steps per CPU second.

    python -m scripts.bench.control                    # 7 rounds, 2 to 5 minutes
    python -m scripts.bench.control --rounds 3

A turn is 20 iterations after the first 20. Both sides step single environments one by one and have
a policy and a critic of two layers of 64 each. Prints the table and writes
runs/bench/control.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any, final

from scripts.bench.places import HERE, KEPT, ROOT, interpreter

SHAPE = {
    "env": "CartPole-v1",
    "num_envs": 8,
    "num_steps": 128,
    "num_epochs": 4,
    "num_minibatches": 4,
    "hidden_sizes": [64, 64],
    "learning_rate": 1e-3,
    "entropy_coef": 0.01,
    "max_grad_norm": 0.5,
    "gamma": 0.98,
    "gae_lambda": 0.95,
    "iterations": 20,
    "seed": 0,
}
PEER = "Stable-Baselines3 2.9.2"
SIDES = {"llmgym": (HERE, "llmgym_control"), PEER: ("sb3-2.9.2", "sb3_control")}
"""Name -> (place of its packages, its worker)."""
TARGET = 1.5
FILE = KEPT / "control.json"


@final
class Turner:
    """A side's process, which waits between its turns; leaves its messages in a log."""

    def __init__(self, name: str, folder: str) -> None:
        """Start it, and wait until it has warmed up."""
        place, worker = SIDES[name]
        self._log = KEPT / "logs" / f"{worker}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [
                    interpreter(place),
                    str(Path(__file__).parent / "workers" / f"{worker}.py"),
                    json.dumps(SHAPE),
                ],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended early: see {self._log}")
        return json.loads(line)

    def turn(self) -> float:
        """Return the CPU seconds of a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        return self._read()["cpu"]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(rounds: int) -> dict[str, Any]:
    """Let both sides take turns; return and keep the CPU seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        turners = {name: Turner(name, folder) for name in SIDES}
        try:
            for number in range(rounds):
                for name in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
                    seconds[name].append(turners[name].turn())
        finally:
            for turner in turners.values():
                turner.close()
    record = {"shape": SHAPE, "seconds": seconds}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def rows() -> list[dict[str, Any]]:
    """Return the rows of what was measured last; none where nothing was.

    Returns:
        For each: work, peer, steps per CPU second of `theirs` and `ours` (medians), `ratio` (the
        median over rounds), `spread` (the least and the greatest ratio), target.
    """
    if not FILE.is_file():
        return []
    record = json.loads(FILE.read_text(encoding="utf-8"))
    shape, seconds = record["shape"], record["seconds"]
    steps = shape["num_envs"] * shape["num_steps"] * shape["iterations"]
    ratios = [theirs / ours for theirs, ours in zip(seconds[PEER], seconds["llmgym"], strict=True)]
    work = (
        f"{shape['env']}, {shape['num_envs']} environments x {shape['num_steps']} steps, "
        f"{shape['num_epochs']} epochs x {shape['num_minibatches']} minibatches"
    )
    return [
        {
            "work": work,
            "peer": PEER,
            "theirs": steps / statistics.median(seconds[PEER]),
            "ours": steps / statistics.median(seconds["llmgym"]),
            "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)),
            "target": TARGET,
        }
    ]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="PPO on CartPole, in turns with SB3.")
    parser.add_argument("--rounds", type=int, default=7)
    measure(parser.parse_args().rounds)
    print("| work | peer, steps per CPU s | ours | ratio (least, greatest) | target |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows():
        low, high = row["spread"]
        print(
            f"| {row['work']} | {row['peer']}: {row['theirs']:,.0f} | {row['ours']:,.0f} | "
            f"{row['ratio']:.2f} ({low:.2f}, {high:.2f}) | {row['target']} |"
        )


if __name__ == "__main__":
    main()
