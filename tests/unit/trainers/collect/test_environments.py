"""An environment is built with the file that settings name."""

from pathlib import Path

import pytest

from llmgym.env import core_env
from tests import tiny
from trainers.collect.environments import text_envs
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.runner.run import run


def test_the_rows_of_the_file_are_the_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.csv").write_text("".join(f"Say {n}.,{n}\n" for n in range(20)))
    config = read([], {"envs.0.id": "llmgym/Prompts-v0", "data.path": "my.csv",
                       "data.columns": ["q", "a"], "data.prompt_column": "q",
                       "envs.0.kwargs.answer_column": "a"})  # fmt: skip
    found = [
        {task.prompt for task in core_env(text_envs(
            config, 1, env=None, reward=None, held_out=held_out).envs[0]).tasks.tasks}
        for held_out in (False, True)
    ]  # fmt: skip
    assert [len(one) for one in found] == [18, 2]
    assert found[0] | found[1] == {f"Say {n}." for n in range(20)}


PROCESSES = {"envs.0.executor": "processes", "envs.0.workers": 2, "envs.0.memory_gb": 2.0}


def test_slots_play_as_the_settings_of_the_environment_say():
    config = read([], {"envs.0.timeout_seconds": 9.0, **PROCESSES})
    envs = text_envs(config, 2, env=None, reward=None)
    envs.reset(seed=0)
    assert (envs.limit.seconds, envs._workers) == (9.0, 2)
    assert [env.client.memory_gb for env in envs.envs] == [2.0, 2.0]
    assert len({env.client.pid for env in envs.envs}) == 2
    envs.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"envs.0.workers": 2}, r"envs.0.workers 2 has no effect on the executor inline"),
        (
            {"envs.0.memory_gb": 2.0, "envs.0.executor": "threads"},
            "memory_gb 2 limits a process, and the executor is threads",
        ),
        ({"envs.0.workers": 0, "envs.0.executor": "threads"}, "workers"),
        ({"envs.0.memory_gb": 0.0, "envs.0.executor": "processes"}, "memory_gb"),
        ({"envs.0.executor": "proceses"}, "executor"),
    ],
)
def test_settings_of_slots_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        read([], changes)


def test_a_run_on_processes_learns_the_same_as_one_on_this_process(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    weights = []
    for name, changes in (("inline", {}), ("processes", PROCESSES)):
        config = tiny.run_settings(model, tmp_path, **{"run.name": name, **changes})
        folder = run(config, reward=tiny.letters, loggers=[]).run_dir
        weights.append((folder / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != (model / "model.safetensors").read_bytes()
