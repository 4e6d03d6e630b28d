"""Train models with random weights on this machine's GPUs, and compare memory with the forecast.

    .venv/bin/python scripts/evidence/gpu.py [CASE ...]      # make bench-gpu runs them all

Each case asks `llmgym plan` first, then runs three iterations under the deepspeed launcher on every
GPU there is. A row says the peak of torch's memory on the fullest GPU (`perf/gpu_gb`) against the
plan's, the median seconds of each phase, and the response tokens per second of writing them and of
learning from them. `0.5B-packed` puts rows end to end, `0.5B-vllm` writes with vLLM next to the
trainer (its interpreter in LLMGYM_VLLM_PYTHON). Needs a GPU with 80 GB for the largest case;
`smoke` is small enough for any, and runs without one as well, where memory is that of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
ITERATIONS, NUM_PROMPTS = 3, 64
Row = Mapping[str, Any]


def sizes(hidden: int, intermediate: int, layers: int) -> list[str]:
    """Return the arguments of a Llama with heads of 64."""
    return [
        "--model.dimensions.hidden-size", str(hidden),
        "--model.dimensions.intermediate-size", str(intermediate),
        "--model.dimensions.num-layers", str(layers),
        "--model.dimensions.num-heads", str(hidden // 64),
    ]  # fmt: skip


def zero(stage: int, offload: str) -> list[str]:
    """Return the arguments of a stage."""
    return ["--backend.zero.stage", str(stage), "--backend.zero.offload", offload]


HALF, ONE_AND_A_HALF = sizes(1024, 4096, 29), sizes(2048, 8192, 22)
CASES = {
    "smoke": [*sizes(128, 256, 2), *zero(3, "params"), "--model.dtype", "float32"],
    "0.5B-zero2": [*HALF, *zero(2, "none")],
    "0.5B-packed": [*HALF, *zero(2, "none"), "--backend.packing", "on"],
    "0.5B-vllm": [*HALF, *zero(2, "none"), "--generation.engine", "vllm"],
    "0.5B-zero2-phases": [*HALF, *zero(2, "none"), "--backend.offload-between-phases", "true"],
    "1.5B-zero2-offload": [*ONE_AND_A_HALF, *zero(2, "optimizer")],
    "1.5B-zero3-offload": [*ONE_AND_A_HALF, *zero(3, "params")],
}
COMMON = [
    "--envs.0.id", "llmgym/GSM8K-v0", "--sft.num-epochs", "0", "--data.too-long", "drop",
    "--generation.max-prompt-tokens", "256", "--generation.max-new-tokens", "128",
    "--ppo.num-prompts", str(NUM_PROMPTS), "--ppo.samples-per-prompt", "1",
    "--ppo.num-minibatches", "2", "--ppo.num-epochs", "1", "--ppo.num-iterations", str(ITERATIONS),
    "--backend.name", "deepspeed", "--backend.gradient-checkpointing", "true",
    "--eval.num-tasks", "0", "--log.wandb.enabled", "false", "--clean",
]  # fmt: skip
"""A model of random weights seldom stops: its responses run to their limit, as the plan assumes."""


def arguments(case: str, folder: Path) -> list[str]:
    """Return what `llmgym train` and `llmgym plan` are given."""
    dtype = [] if "--model.dtype" in CASES[case] else ["--model.dtype", "bfloat16"]
    return ["default", *CASES[case], *dtype, *COMMON, "--name", case, "--run.dir", str(folder)]


def row_of(case: str, planned: Row, metrics: Sequence[Row]) -> str:
    """Return a row: peaks in GiB, tokens per second, and the median seconds of each phase."""
    updates = [row for row in metrics if "objective/scores" in row]
    name = "perf/gpu_gb" if "perf/gpu_gb" in updates[-1] else "perf/cpu_gb"
    real = max(float(row[name]) for row in updates)
    most = max(phase["total"] for phase in planned["memory"]) / 2**30
    seconds = {
        key.removeprefix("timing_s/"): median(float(row[key]) for row in updates)
        for key in updates[-1]
        if key.startswith("timing_s/")
    }
    times = ", ".join(f"{phase} {spent:.2f}" for phase, spent in seconds.items())
    tokens = NUM_PROMPTS * median(float(row["completions/mean_length"]) for row in updates)
    rates = " | ".join(f"{tokens / seconds[phase]:.0f}" for phase in ("rollout", "update"))
    return f"| {case} | {most:.2f} | {real:.2f} | {most / real - 1:+.0%} | {rates} | {times} |"


def compared(case: str, folder: Path) -> str:
    """Plan and train a case."""
    count = max(1, torch.cuda.device_count())
    words = arguments(case, folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    alone = ["--gpus", str(count)] if torch.cuda.is_available() else []
    plan = [sys.executable, "-m", "trainers.cli", "plan", *words, *alone, "--json"]
    launch = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(count)]
    script = str(ROOT / "scripts" / "train_ppo.py")
    done = subprocess.run(plan, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    subprocess.run([*launch, script, *words], env=environment, stdout=sys.stderr, check=True)
    lines = (folder / case / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return row_of(case, json.loads(done.stdout.splitlines()[-1]), [json.loads(x) for x in lines])


def main() -> None:
    """Print the table.

    Raises:
        SystemExit: there is no GPU for a case that needs one.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[*CASES])
    cases = parser.parse_args().cases
    if cases != ["smoke"] and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; without one there is: gpu.py smoke")
    print("| model | planned GiB | measured GiB | difference | tokens/s written | learned "
          "| seconds per iteration |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            print(compared(case, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
