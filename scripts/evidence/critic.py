"""Make the tables of docs/results/critic.md: does a critic pay? PPO, RLOO and GRPO on four tasks.

    LLMGYM_DATA=../shared/data .venv/bin/python scripts/evidence/critic.py [--seeds 0 1 2]
        [--tasks arithmetic guess gsm8k lake]

A task's arms begin with the same weights (of each seed its own; gsm8k with those of one; lake with
random ones) and learn at the same constant rate. PPO with a critic runs for a fixed number of
iterations; RLOO and GRPO run for more of them, and are read where they had used as many samples,
and where they had used as many CPU seconds, as PPO in all. CPU minutes on one thread for
three seeds: arithmetic 40, guess 35, lake 10, gsm8k 70. A run that is done is kept in
runs/evidence/critic-*.json and not done again.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from one_thread import KEPT, ROOT, llmgym

DATA = Path(os.environ.get("LLMGYM_DATA", ROOT.parent / "shared" / "data")) / "gsm8k"
ARMS = {
    "PPO": [],
    "RLOO": ["--ppo.critic", "none", "--ppo.advantage", "rloo"],
    "GRPO": ["--ppo.critic", "none", "--ppo.advantage", "grpo"],
}
ENDS = ("ci_low", "ci_high")
"""Of a score's interval; where all scores are equal there is none."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A task's settings.

    Attributes:
        title: what the table calls it.
        env: id of its environment.
        start: the command that makes what all arms of a seed begin with; none: random weights.
        common: settings of every arm.
        iterations: of PPO, and of the arms without a critic.
        every: iterations between two evaluations.
        sizes: settings of an iteration's samples, with a critic and without.
        unit: of a sample.
        is_one_start: whether all seeds begin with the same weights.
    """

    title: str
    env: str
    start: tuple[str, ...]
    common: tuple[str, ...]
    iterations: tuple[int, int]
    every: int
    sizes: tuple[tuple[str, ...], tuple[str, ...]]
    unit: str = "episodes"
    is_one_start: bool = False


def prompts(number: int, size: int) -> tuple[str, ...]:
    """Return the settings of `number` prompts with `size` responses each."""
    return ("--ppo.num-prompts", str(number), "--ppo.samples-per-prompt", str(size))


TASKS = {
    "arithmetic": Task(
        title="Arithmetic",
        env="llmgym/Arithmetic-v0",
        start=("sft", "quickstart"),
        common=("quickstart", "--sft.num-epochs", "0"),
        iterations=(60, 80),
        every=10,
        sizes=(prompts(512, 1), prompts(64, 8)),
    ),
    "guess": Task(
        title="GuessNumber, up to 3 turns",
        env="llmgym/GuessNumber-v0",
        start=("sft", "guess_number"),
        common=("guess_number", "--sft.num-epochs", "0"),
        iterations=(12, 15),
        every=3,
        sizes=(prompts(512, 1), prompts(64, 8)),
    ),
    "gsm8k": Task(
        title="GSM8K, consistency",
        env="llmgym/GSM8K-v0",
        start=(
            *("sft", "--model.preset", "small", "--data", str(DATA / "train.jsonl")),
            *("--data.prompt-column", "question", "--data.response-column", "answer"),
        ),
        is_one_start=True,
        common=(
            *("gsm8k_small_cpu", "--envs.0.kwargs.path", str(DATA / "train.jsonl")),
            *("--envs.0.kwargs.weights.answer", "0.0", "--envs.0.kwargs.weights.consistency", "1"),
            *("--envs.0.kwargs.weights.grounded", "0.0", "--envs.0.kwargs.weights.format", "0.0"),
            *("--generation.max-new-tokens", "160", "--eval.num-tasks", "256"),
            *("--ppo.learning-rate", "2e-4", "--ppo.critic-learning-rate", "1e-3"),
        ),
        iterations=(12, 18),
        every=3,
        sizes=(prompts(128, 1), prompts(16, 8)),
    ),
    "lake": Task(
        title="FrozenLake-v1",
        env="FrozenLake-v1",
        start=(),
        common=(
            *("cartpole", "--envs.0.id", "FrozenLake-v1", "--ppo.gamma", "1.0"),
            *("--eval.num-tasks", "400", "--ppo.num-epochs", "4"),
        ),
        iterations=(60, 120),
        every=10,
        sizes=(
            (*prompts(32, 1), "--ppo.num-steps", "128"),
            (*prompts(8, 16), "--ppo.num-steps", "100"),
        ),
        unit="steps",
    ),
}


def start_of(task: Task, key: str, seed: int) -> list[str]:
    """Return the setting of the model that a seed's arms begin with, which is made once."""
    if not task.start:
        return []
    if task.is_one_start:
        seed = 0
    name = f"critic-{key}-start-{seed}"
    model = ROOT / "runs" / name / "model"
    done = KEPT / f"{name}.json"
    if not done.exists():
        seconds = llmgym(name, [*task.start, "--clean", "--name", name, "--run.seed", str(seed)])
        done.write_text(json.dumps({"cpu_seconds": seconds}), encoding="utf-8")
    return ["--model.path", str(model)]


def one_run(key: str, arm: str, seed: int) -> Record:
    """Return a run's evaluations and figures; it is done unless it was done before."""
    task, name = TASKS[key], f"critic-{key}-{arm.lower()}-{seed}"
    file = KEPT / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    has_critic = arm == "PPO"
    command, *rest = ["train", *task.common, *ARMS[arm], *start_of(task, key, seed)]
    rest += [*task.sizes[not has_critic], "--ppo.lr-schedule", "constant"]
    rest += ["--ppo.num-iterations", str(task.iterations[not has_critic])]
    rest += ["--eval.every", str(task.every), "--checkpoint.every", "0"]
    seconds = llmgym(name, [command, *rest, "--clean", "--name", name, "--run.seed", str(seed)])
    lines = (ROOT / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    record = figures(task, [json.loads(line) for line in lines], seconds)
    file.write_text(json.dumps(record), encoding="utf-8")
    return record


def figures(task: Task, rows: list[Record], seconds: float) -> Record:
    """Return each evaluation with the samples and CPU seconds before it, and the last figures.

    The CPU seconds of the whole command are given to its iterations in proportion to their time.
    """
    trained = [row for row in rows if "timing_s/total" in row]
    wall = sum(row["timing_s/total"] for row in trained)
    samples = spent = episodes = 0.0
    points: list[Record] = []
    for row in rows:
        if "timing_s/total" in row:
            played, episodes = row["train/episodes"] - episodes, row["train/episodes"]
            is_steps = task.unit == "steps" and played > 0
            size = row["perf/steps_per_s"] / row["perf/samples_per_s"] if is_steps else 1.0
            samples += played * size
            spent += seconds * row["timing_s/total"] / wall
        if f"eval/{task.env}/mean" in row:
            score = {name: row.get(f"eval/{task.env}/{name}") for name in ("mean", *ENDS)}
            points.append({"samples": samples, "cpu_seconds": spent, **score})
    last = trained[-10:]
    return {
        "points": points,
        "cpu_seconds": seconds,
        "kl": [row["objective/kl"] for row in last if "objective/kl" in row],
        "explained": [row["value/explained_var"] for row in last if "value/explained_var" in row],
    }


def shown(points: list[Record], axis: str, limit: float) -> str:
    """Return the last score within a limit of samples or CPU seconds, with its interval."""
    within = [point for point in points if point[axis] <= limit * 1.01]
    point = within[-1]
    low, high = (point[name] for name in ENDS)
    return f"{point['mean']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def mean_of(values: list[float]) -> str:
    """Return a mean, or a dash where there is nothing."""
    return f"{fmean(values):.2f}" if values else "-"


def lines_of(key: str, seed: int) -> list[str]:
    """Return the rows of the table of one seed of a task."""
    runs = {arm: one_run(key, arm, seed) for arm in ARMS}
    limit = runs["PPO"]["points"][-1]
    lines = []
    for arm, run in runs.items():
        points = run["points"]
        cells = [TASKS[key].title, str(seed), arm, shown(points, "samples", 0)]
        cells += [shown(points, axis, limit[axis]) for axis in ("samples", "cpu_seconds")]
        cells += [mean_of(run["explained"]), mean_of(run["kl"])]
        each = run["cpu_seconds"] / points[-1]["samples"] * 1000
        cells += [f"{run['cpu_seconds']:.0f}", f"{each:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    header = ["task", "seed", "arm", "at the start", "same samples", "same CPU seconds"]
    header += ["explained variance", "KL", "CPU seconds of the run", "CPU s per 1,000 samples"]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for seed in options.seeds:
        for key in options.tasks:
            print("\n".join(lines_of(key, seed)), flush=True)


if __name__ == "__main__":
    main()
