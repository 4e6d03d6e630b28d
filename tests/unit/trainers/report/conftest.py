"""Real runs, as small as they can be: of text, with a supervised stage before, and of control."""

import shutil

import pytest

from trainers.config.files import preset, read
from trainers.loggers.jsonl import JsonlLogger
from trainers.runner.run import run

SMALL = {
    "log.wandb.enabled": False,
    "log.samples_every": 1,
    "ppo.num_iterations": 2,
    "ppo.num_epochs": 1,
    "ppo.num_minibatches": 1,
    "eval.num_tasks": 6,
}
TEXT = {"data.num_examples": 32, "sft.num_epochs": 1, "ppo.num_prompts": 4, "model.context": 64}
CONTROL = {"ppo.num_prompts": 2, "ppo.num_steps": 16}


def trained(folder, name, changes):
    settings = {**SMALL, **changes, "run.dir": str(folder), "run.name": name}
    return run(read([preset(name)], settings), loggers=[JsonlLogger()]).run_dir


@pytest.fixture(scope="module", autouse=True)
def blank_charts():
    """Draw charts here, in place of the fixture that leaves them blank elsewhere."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with the runs `quickstart` and `cartpole`; not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    trained(folder, "quickstart", TEXT)
    trained(folder, "cartpole", CONTROL)
    return folder


@pytest.fixture
def text_run(runs, tmp_path):
    """A copy of the run of text."""
    return shutil.copytree(runs / "quickstart", tmp_path / "quickstart", symlinks=True)


@pytest.fixture
def control_run(runs, tmp_path):
    """A copy of the run of control."""
    return shutil.copytree(runs / "cartpole", tmp_path / "cartpole", symlinks=True)
