"""What one touches to add something: at most two files, besides its test and its row in docs.

Each addition is planted in a copy of the product, and one process of its own finds all of them
working.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOST_FILES = 2

ESTIMATOR = {
    "trainers/config/ppo.py": (
        '"grpo", "teacher"] = "gae"',
        '"grpo", "teacher", "winner"] = "gae"',
    ),
    "trainers/functional/advantages.py": (
        '    "grpo": _by_group,\n',
        '    "grpo": _by_group,\n'
        '    "winner": lambda t, _: ((t.rewards.sum(1) > 3)[:, None] * t.mask, None),\n',
    ),
}
GENERATOR = {
    "trainers/config/text.py": (
        'engine: Literal["transformers", "vllm", "speculative", "continuous"]',
        "engine: Literal['transformers', 'vllm', 'speculative', 'continuous', 'loud']",
    ),
    "trainers/generation/loud.py": """
from trainers.generation.transformers import TransformersGenerator

class LoudGenerator(TransformersGenerator.__mro__[1]):
    def __init__(self, parts):
        self.inner = TransformersGenerator(parts)
        self.exact = True
    policy_version = property(lambda self: self.inner.policy_version)
    def generate(self, requests, sampling):
        print("LOUD", len(requests))
        return self.inner.generate(requests, sampling)
    def load_weights(self, weights, version):
        self.inner.load_weights(weights, version)
    def sleep(self):
        self.inner.sleep()

make_generator = LoudGenerator

def check_engine(config):
    print("LOUD CHECK")
""",
}
LOGGER = {
    "trainers/config/settings.py": (
        "    tensorboard: bool = False",
        '    told: bool = False\n    """Print keys."""\n    tensorboard: bool = False',
    ),
    "trainers/loggers/told.py": """
from trainers.loggers.base import Logger

class ToldLogger(Logger):
    def log(self, values, step, section="ppo"):
        print("TOLD", *sorted(values))
    def close(self, status):
        print("CLOSED", status)

make_logger = ToldLogger
""",
}
STAGE = {
    "trainers/config/settings.py": (
        'Literal["text", "control"]',
        'Literal["text", "control", "idle"]',
    ),
    "trainers/runner/stages/ppo_idle.py": """
def train_stage(session, env, reward):
    print("IDLE", session.config.run.name)
    return {"loss/idle": 0.5}
""",
}
METRIC = {
    "trainers/functional/ppo_metrics.py": (
        'figures = {"advantages/mean": float(mean),',
        "size = float(raw[mask].abs().mean())\n"
        '    figures = {"advantages/abs": size, "advantages/mean": float(mean),',
    ),
}
SETTING = {
    "trainers/config/ppo.py": (
        "    scale_advantages: bool",
        '    advantage_factor: float = 1.0\n    """Times this."""\n    scale_advantages: bool',
    ),
    "trainers/ppo.py": (
        "    advantages, returns = _estimated(rollout, config)\n",
        "    advantages, returns = _estimated(rollout, config)\n"
        "    advantages = advantages * config.advantage_factor\n",
    ),
}
ADDITIONS = {
    "an estimator": ESTIMATOR,
    "a generator": GENERATOR,
    "a logger": LOGGER,
    "a stage": STAGE,
    "a metric": METRIC,
    "a setting": SETTING,
}
SCRIPT = """
import sys
from pathlib import Path
import trainers
from tests import tiny
from trainers.config.files import read
from trainers.runner.run import run

assert Path(trainers.__file__).is_relative_to(sys.argv[1]), trainers.__file__
folder = Path(sys.argv[1]) / "runs"
quiet = {"log.wandb.enabled": False, "eval.num_tasks": 0, "run.dir": str(folder)}
control = {
    "run.kind": "control", "envs.0.id": "CartPole-v1", "ppo.kl_placement": "none",
    "ppo.num_iterations": 1, "ppo.num_prompts": 2, "ppo.samples_per_prompt": 2, "ppo.num_steps": 20,
    "ppo.critic": "none", "ppo.advantage": "winner", "ppo.advantage_factor": 3.0,
}
result = run(read([], {**quiet, **control, "run.name": "control", "log.told": True}))
print("FACTOR", result.metrics["advantages/abs"])
run(read([], {**quiet, "run.kind": "idle", "run.name": "idle"}), loggers=[])
model = tiny.save_model(folder / "model")
text = {"generation.engine": "loud", "ppo.num_iterations": 1, "run.name": "text"}
run(tiny.run_settings(model, folder, **text), reward=lambda response: 1.0, loggers=[])
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What the copy with every addition prints."""
    copy = tmp_path_factory.mktemp("copy")
    for package in ("trainers", "llmgym"):
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for addition in ADDITIONS.values():
        for file, change in addition.items():
            path = copy / file
            if isinstance(change, str):
                assert not path.exists()
                path.write_text(change, encoding="utf-8")
                continue
            source = path.read_text(encoding="utf-8")
            assert source.count(change[0]) == 1, (file, change[0])
            path.write_text(source.replace(*change), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(copy)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_touches_two_files_at_most(name):
    assert len(ADDITIONS[name]) <= MOST_FILES


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("an estimator", "FACTOR 3.0"),  # CartPole lasts longer than three steps: all have won
        ("a generator", "LOUD 8"),
        ("a logger", "CLOSED finished"),
        ("a stage", "IDLE idle"),
        ("a metric", "TOLD advantages/abs"),
        ("a setting", "FACTOR 3.0"),
    ],
)
def test_it_works_where_it_was_added(output, name, word):
    assert word in output, f"{name} is not found working:\n{output}"
