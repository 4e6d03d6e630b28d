"""An environment is built with the file that settings name."""

from pathlib import Path

from llmgym.env import core_env
from trainers.collect.environments import text_envs
from trainers.config.files import read


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
