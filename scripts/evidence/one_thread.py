"""Run `llmgym` on one thread for a page of results, and measure its CPU seconds."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "evidence"
"""Outputs and figures of runs that are done."""


def llmgym(name: str, arguments: list[str]) -> float:
    """Run `llmgym` on one thread; return its CPU seconds, and leave its output in NAME.log."""
    with (KEPT / f"{name}.log").open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.cli", *arguments],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"llmgym {' '.join(arguments)} failed; see {stream.name}")
    return usage.ru_utime + usage.ru_stime
