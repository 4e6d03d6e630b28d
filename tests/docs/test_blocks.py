"""Every block of Python in the README, the first pages and the guides runs, page by page."""

import dataclasses
import importlib
import re
import sys

import gymnasium
import pytest

import trainers.runner.run
from llmgym import registry
from tests.docs.pages import START, blocks, name

FILE = re.compile(r"# (\w+\.py)\n")
run = trainers.runner.run.run


def small(config, **kwargs):
    """Run the stages of a config for one short iteration."""
    return run(
        dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, num_examples=32),
            sft=dataclasses.replace(config.sft, num_epochs=1),
            ppo=dataclasses.replace(
                config.ppo, num_iterations=1, num_prompts=2, num_minibatches=1, num_epochs=1
            ),
            eval=dataclasses.replace(config.eval, num_tasks=2),
            log=dataclasses.replace(
                config.log, wandb=dataclasses.replace(config.log.wandb, enabled=False)
            ),
        ),
        **kwargs,
    )


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """An empty folder to work in; what is registered or imported there is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trainers.runner.run, "run", small)
    monkeypatch.setattr(registry, "_TAGS", dict(registry._TAGS))
    ids = set(gymnasium.registry)
    yield tmp_path
    for one in set(gymnasium.registry) - ids:
        del gymnasium.registry[one]
    for file in tmp_path.glob("*.py"):
        del sys.modules[file.stem]


@pytest.mark.parametrize("page", [page for page in START if blocks(page, "python")], ids=name)
def test_the_blocks_of_a_page_run_in_order(page, newcomer):
    namespace = {"__name__": "__main__"}
    for text in blocks(page, "python"):
        if file := FILE.match(text):
            (newcomer / file[1]).write_text(text, "utf-8")
            importlib.invalidate_caches()
            importlib.import_module(file[1].removesuffix(".py"))
        else:
            exec(compile(text, name(page), "exec"), namespace)
