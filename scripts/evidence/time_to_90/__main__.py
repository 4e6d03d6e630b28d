"""Make the table of docs/results/time_to_90.md: CPU seconds from one SFT checkpoint to 90 %.

    .venv/bin/python -m scripts.evidence.time_to_90 [--seeds 0 1 2] [--tune 3]

PPO of this project, TRL 1.12 PPO and TRL 1.16 GRPO begin with the weights of one SFT checkpoint,
that of `quickstart` with seed 0, in every run. They learn two-digit addition from the same prompts
with the same scorer, and are judged greedily on the same 512 held-out sums after every third
rollout of 512 responses. The clock is CPU time of the process on one thread; it stands still while
a model is judged. Each trainer's learning rate and epochs are those of the same grid that reached
90 % first on the seed `--tune`. A run ends at 90 %, or after 120 rollouts or 300 CPU seconds.
About 60 CPU minutes; what is done is kept in runs/evidence/time-to-90-*.json and not done again.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium

import llmgym  # noqa: F401 - registers the environment
from llmgym.env import core_env
from scripts.bench.places import interpreter

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "runs" / "evidence"
WORKERS = Path(__file__).parent
TRAINERS = {
    "llmgym PPO": ("ours.py", "here"),
    "TRL 1.12 PPO": ("trl_ppo.py", "trl-1.12"),
    "TRL 1.16 GRPO": ("trl_grpo.py", "trl-1.16"),
}
GRID = tuple(product((3e-4, 6e-4), (1, 4)))
"""Learning rates, and epochs over a rollout."""
NUM_PROMPTS, NUM_HELD_OUT = 61_440, 512
Record = dict[str, Any]


def sums(split: str, number: int) -> list[Record]:
    """Return prompts and answers of the first tasks of a split."""
    env = gymnasium.make("llmgym/Arithmetic-v0", split=split)
    tasks = core_env(env).tasks
    listed = (tasks[index] for index in range(number))
    return [{"prompt": task.prompt, "answer": str(task.answer)} for task in listed]


def write_sums() -> None:
    """Write what all trainers read, where it is not there."""
    for split, number in (("train", NUM_PROMPTS), ("test", NUM_HELD_OUT)):
        file = KEPT / f"time-to-90-{split}.json"
        if not file.exists():
            file.write_text(json.dumps(sums(split, number)), encoding="utf-8")


def start() -> Path:
    """Return the folder of the SFT checkpoint, made once."""
    name = "time-to-90-start"
    folder = ROOT / "runs" / name / "model"
    if not (folder / "config.json").is_file():
        command = ["sft", "quickstart", "--clean", "--name", name]
        run([sys.executable, "-m", "trainers.cli", *command], name)
    return folder


def run(command: list[str], name: str) -> None:
    """Run a command on one thread, its output in NAME.log.

    Raises:
        SystemExit: it failed.
    """
    log = KEPT / f"{name}.log"
    env = {
        **os.environ,
        **{"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)},
    }
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, env=env, check=False
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")


def one_run(trainer: str, seed: int, rate: float, epochs: int) -> list[Record]:
    """Return a run's scores by CPU seconds, done unless it was done before."""
    worker, place = TRAINERS[trainer]
    name = f"time-to-90-{worker.removesuffix('.py')}-{seed}-{rate:g}-{epochs}"
    file = KEPT / f"{name}.json"
    if not file.exists():
        job = {
            "model": str(start()),
            "train": str(KEPT / "time-to-90-train.json"),
            "test": str(KEPT / "time-to-90-test.json"),
            "seed": seed,
            "rate": rate,
            "epochs": epochs,
            "out": str(file),
        }
        run([interpreter(place), str(WORKERS / worker), json.dumps(job)], name)
    record: list[Record] = json.loads(file.read_text(encoding="utf-8"))
    last = record[-1]
    print(f"{name}: {last['score']:.3f} at {last['cpu_seconds']:.0f} CPU s", file=sys.stderr)
    return record


def seconds_to_90(points: list[Record]) -> float | None:
    """Return the CPU seconds of the first score of 0.9 or more; None without one."""
    return next((point["cpu_seconds"] for point in points if point["score"] >= 0.9), None)


def chosen(trainer: str, seed: int) -> tuple[float, int]:
    """Return the rate and epochs that reached 90 % first; where none did, the best last score."""

    def rank(setting: tuple[float, int]) -> tuple[float, float]:
        points = one_run(trainer, seed, *setting)
        return seconds_to_90(points) or float("inf"), -points[-1]["score"]

    return min(GRID, key=rank)


def lines(seeds: list[int], tune: int) -> list[str]:
    """Return the rows of the table."""
    made: list[str] = []
    for trainer in TRAINERS:
        rate, epochs = chosen(trainer, tune)
        times: list[float] = []
        for seed in seeds:
            points = one_run(trainer, seed, rate, epochs)
            reached = seconds_to_90(points)
            last = points[-1]
            shown = f"**{reached:.0f}**" if reached else f"not in {last['cpu_seconds']:.0f}"
            times.append(reached or float("inf"))
            made.append(
                f"| {trainer} | {rate:g} | {epochs} | {seed} | {points[0]['score']:.3f} | {shown} "
                f"| {last['rollouts']} | {last['score']:.3f} |"
            )
        made.append(f"| {trainer} | | | median | | {median(times):.0f} | | |")
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tune", type=int, default=3)
    words = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    write_sums()
    print("| trainer | learning rate | epochs | seed | at the start | CPU s to 90 % "
          "| rollouts | last score |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(lines(words.seeds, words.tune)))


if __name__ == "__main__":
    main()
