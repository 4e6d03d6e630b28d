"""An environment that hangs: the run names the line, saves, ends soon after a request to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from trainers.run_dir.record import lines

ROOT = Path(__file__).parents[2]
CODE = """
import sys, time
import llmgym, trainers
from llmgym.data.rows import Columns
from trainers.config.files import read
from trainers.runner import session

session.STOP_SECONDS = 0.5
calls = 0


class Hangs(llmgym.LLMEnv):
    def __init__(self, split="train", reward=None):
        rows = [{"prompt": f"{split} {n}", "answer": "a"} for n in range(40)]
        super().__init__(llmgym.from_list(rows, Columns(answer="answer")), "exact")

    def reply(self, response):
        global calls
        calls += 1
        if calls > 16:
            print("hangs", flush=True)
            time.sleep(300)
        return llmgym.Reply(done=True)


config = read([], {
    "run.name": "hangs", "run.dir": sys.argv[1], "envs.0.timeout_seconds": float(sys.argv[2]),
    "ppo.num_iterations": 9, "ppo.num_prompts": 4, "ppo.samples_per_prompt": 2,
    "ppo.num_minibatches": 1, "generation.max_new_tokens": 4, "eval.num_tasks": 0,
    "checkpoint.every": 0, "log.wandb.enabled": False,
})
trainers.run(config, env=Hangs)
"""


def start(tmp_path, seconds):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", CODE, str(tmp_path), str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip


def saved(tmp_path):
    folder = tmp_path / "hangs"
    assert [row["train/global_step"] for row in lines(folder / "metrics.jsonl")][-1] == 2
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["ppo_000002"]
    assert not (folder / "run.lock").exists()
    assert all((folder / name / "config.json").exists() for name in ("model", "critic"))
    return folder


def test_a_hang_ends_the_run_with_its_line_and_what_was_learned(tmp_path):
    process = start(tmp_path, 1.0)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "env_timeout=1 s: it was at <string>:" in output
    assert '"status": "failed"' in (saved(tmp_path) / "status.json").read_text()


def test_a_request_to_stop_ends_a_hang_soon_and_the_run_is_saved(tmp_path):
    process = start(tmp_path, 600.0)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("hangs"):
            break
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert process.returncode == 0, output
    assert '"status": "interrupted"' in (saved(tmp_path) / "status.json").read_text()
