"""Long runs: neither memory nor the work of an iteration grows with the iterations before."""

from pathlib import Path

import pytest

from tests import tiny
from trainers.config.files import read
from trainers.loggers.base import Logger
from trainers.loggers.jsonl import JsonlLogger
from trainers.runner.run import run


def resident():
    """The bytes that this process holds."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise LookupError("no VmRSS")


class Memory(Logger):
    """Reads the memory of this process after each iteration."""

    def __init__(self):
        self.held = []

    def log(self, values, step, section="ppo"):
        self.held.append(resident())

    def close(self, status):
        """Keep what was read."""


KINDS = {
    "text": {
        **tiny.RUN,
        "envs.0.id": "llmgym/Arithmetic-v0",
        "ppo.num_minibatches": 1,
        "ppo.num_epochs": 1,
    },
    "control": {
        "run.kind": "control",
        "run.name": "a",
        "envs.0.id": "CartPole-v1",
        "ppo.num_prompts": 2,
        "ppo.samples_per_prompt": 1,
        "ppo.num_steps": 16,
        "ppo.num_epochs": 1,
        "ppo.kl_placement": "none",
        "eval.num_tasks": 0,
        "log.wandb.enabled": False,
    },
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_iterations_hold_what_twenty_hold(tmp_path, kind):
    changes = {
        **KINDS[kind],
        "run.dir": str(tmp_path),
        "ppo.num_iterations": 1000,
        "checkpoint.every": 50,
    }
    if kind == "text":
        changes["model.path"] = str(tiny.save_model(tmp_path / "model"))
    memory = Memory()
    run(read([], changes), loggers=[memory, JsonlLogger()])
    assert len(memory.held) == 1000
    assert max(memory.held[950:]) <= 1.02 * max(memory.held[15:25])
