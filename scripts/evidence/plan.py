"""Make the table of docs/results/plan.md: `llmgym plan` against the memory a run really takes.

    .venv/bin/python scripts/evidence/plan.py [base] [88m]

For each model it asks `llmgym plan` for a forecast, then trains one iteration of the same settings
in a process of its own, on one thread. That process imports every library first, and then notes the
most memory (VmHWM, set back before each phase) that each phase takes beyond that. Prompts are of
about equal length and responses run to their limit, as the forecast assumes. The optimizer's
moments begin with the first update, so they are left out of the phases before it. A CPU process
keeps what its heap once had, so each row is the most up to its phase. 3 CPU minutes; Linux only.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from trainers import ppo
from trainers.cli.arguments import read_arguments
from trainers.cli.train import config_of
from trainers.config import Config, ModelConfig
from trainers.generation.transformers import TransformersGenerator
from trainers.learner import FrozenPolicy, Learner
from trainers.models.loading import load_chat, load_tokenizer
from trainers.runner.run import run
from trainers.runner.session import Session

ROOT = Path(__file__).parents[2]
WORDS, PROMPTS, VOCABULARY = 40, 400, 6000
COMMON = [
    "--envs.0.id", "llmgym/Prompts-v0", "--rewards.0.name", "constant",
    "--generation.max-new-tokens", "64", "--ppo.num-iterations", "1", "--ppo.num-epochs", "2",
    "--ppo.samples-per-prompt", "1",
    "--eval.num-tasks", "0", "--log.wandb.enabled", "false", "--clean",
]  # fmt: skip
CASES = {
    "base": ["--model.preset", "base", "--ppo.num-prompts", "64"],
    "88m": [
        "--model.dimensions.hidden-size", "768", "--model.dimensions.intermediate-size", "2048",
        "--model.dimensions.num-layers", "12", "--model.dimensions.num-heads", "12",
        "--model.vocab-size", "4096", "--ppo.num-prompts", "24",
        "--backend.micro-batch-tokens", "2048",
    ],
}  # fmt: skip
"""Arguments of each model: one with many activations, one with many parameters."""

BEFORE = ("rollout", "logprobs", "values")
"""Phases of the first iteration in which Adam has no moments yet."""

Figures = dict[str, float]


def prompts(folder: Path) -> tuple[Path, int]:
    """Write prompts of as many tokens each; return the file, and the tokens of the longest."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(VOCABULARY)]
    texts = [" ".join(rng.choices(words, k=WORDS)) for _ in range(PROMPTS)]
    file = folder / "prompts.jsonl"
    rows = [json.dumps({"prompt": text, "solution": ""}) for text in texts]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = Config(model=ModelConfig(preset="base"))
    chat = load_chat(config, load_tokenizer(config, texts), env="the prompts")
    lengths = [len(chat.prompt_ids(({"role": "user", "content": text},))) for text in texts]
    return file, max(lengths)


def status(name: str) -> float:
    """Return a figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Watch:
    """Notes the most memory and the seconds of each phase of this process."""

    def __init__(self) -> None:
        self.peaks: Figures = {}
        self.seconds: Figures = {}
        self._reset()
        self._start = status("VmRSS")

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def note(self, name: str) -> None:
        """Add the peak since the last note to a phase."""
        grown = status("VmHWM") - self._start
        self.peaks[name] = max(self.peaks.get(name, 0.0), grown)
        self._reset()

    def over(self, owner: Any, method: str, name: str) -> None:  # noqa: ANN401
        """Watch a function from now on."""
        run: Callable[..., Any] = vars(owner)[method]

        @wraps(run)
        def watched(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self.note("other")
            begin = time.process_time()
            try:
                return run(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin
                self.note(name)

        setattr(owner, method, watched)


def watched_run(words: list[str]) -> None:
    """Train in this process; print the peak and the CPU seconds of each phase as JSON."""
    launch = read_arguments(words)
    config = config_of(launch)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True).zero_grad()
    plt.close(plt.figure())  # what libraries load on their first use is theirs as well
    watch = Watch()
    for owner, method, name in (
        (TransformersGenerator, "generate", "rollout"),
        (Learner, "logprobs", "logprobs"),
        (FrozenPolicy, "logprobs", "logprobs"),
        (Learner, "values", "values"),
        (ppo, "learn", "update"),
        (Session, "save", "save"),
    ):
        watch.over(owner, method, name)
    run(config, clean=launch.clean, loggers=[])
    watch.note("other")
    print(json.dumps({"peaks": watch.peaks, "seconds": watch.seconds}))


def output(words: list[str]) -> Any:  # noqa: ANN401
    """Run Python on one thread and return the JSON of its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, text=True, check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def compared(case: str, folder: Path) -> dict[str, Any]:
    """Return the forecast and the measurement of a case."""
    file, longest = prompts(folder)
    words = [
        *CASES[case], *COMMON, "--envs.0.kwargs.path", str(file), "--name", f"plan-{case}",
        "--run.dir", str(folder), "--generation.max-prompt-tokens", str(longest),
    ]  # fmt: skip
    planned = output(["-m", "trainers.cli", "plan", *words, "--json"])
    measured = output([str(Path(__file__)), "--run", *words])
    return {"planned": planned, "measured": measured}


def rows_of(case: str, result: dict[str, Any]) -> list[str]:
    """Return the rows of a case, in GiB."""
    rows = []
    measured = result["measured"]["peaks"]
    planned = {
        phase["name"]: phase["total"] - (phase["optimizer"] if phase["name"] in BEFORE else 0)
        for phase in result["planned"]["memory"]
    }
    most = real = 0.0
    for name, size in planned.items():
        most, real = max(most, size), max(real, measured[name])
        figures = f"{most / 2**30:.2f} | {real / 2**30:.2f} | {most / real - 1:+.0%}"
        rows.append(f"| {case} | {name} | {figures} |")
    return rows


def main() -> None:
    """Compare and print the table."""
    if sys.argv[1:2] == ["--run"]:
        watched_run(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[*CASES])
    print("| model | up to and with | planned GiB | measured GiB | difference |")
    print("| --- | --- | --- | --- | --- |")
    for case in parser.parse_args().cases:
        with tempfile.TemporaryDirectory() as folder:
            result = compared(case, Path(folder))
        print("\n".join(rows_of(case, result)), flush=True)


if __name__ == "__main__":
    main()
