"""What lies behind the settings is part of a run: other files are refused when it is resumed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import llmgym
from llmgym.data.rows import Columns
from llmgym.rewards import base
from llmgym.vector import LLMVectorEnv
from tests import judges, tiny
from trainers.checkpoint import identity
from trainers.errors import BackendError, ConfigError
from trainers.models.chat import train_tokenizer
from trainers.runner.digests import demonstrations_digest, tasks_digest, weights_digest
from trainers.runner.run import run
from trainers.supervised.sft_data import Demonstration

ROWS = [{"prompt": f"{n} + 1 =", "answer": str(n + 1), "hint": "a"} for n in range(6)]
CHANGES = {"ppo.num_iterations": 1, "envs.0.id": "llmgym/Prompts-v0"}


def digest(rows):
    tasks = llmgym.from_list(rows, Columns(answer="answer"))
    return tasks_digest(LLMVectorEnv([lambda: llmgym.SingleTurnEnv(tasks, "exact")]))


def test_tasks_are_told_apart_by_every_column_by_order_and_by_number():
    changed = [{**ROWS[0], "hint": "b"}, *ROWS[1:]]
    answered = [{**ROWS[0], "answer": "7"}, *ROWS[1:]]
    others = [changed, answered, ROWS[::-1], ROWS[:-1], [*ROWS, ROWS[0]]]
    found = [digest(rows) for rows in (ROWS, *others)]
    assert len({*found}) == len(found)
    assert digest([dict(row) for row in ROWS]) == found[0]


def test_what_has_no_text_of_its_own_does_not_tell_tasks_apart():
    assert digest([{**ROWS[0], "hint": object()}]) == digest([{**ROWS[0], "hint": object()}])


def test_demonstrations_and_weights_are_told_apart():
    def shown(text):
        return [
            Demonstration(messages=({"role": "user", "content": "a"},), response=text, place="")
        ]

    assert demonstrations_digest(shown("a")) == demonstrations_digest(shown("a"))
    assert demonstrations_digest(shown("a")) != demonstrations_digest(shown("b"))
    model = tiny.llama()
    before = weights_digest(model)
    assert before == weights_digest(tiny.llama())
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nextafter(model.lm_head.weight[0, 0], torch.tensor(9.0))
    assert weights_digest(model) != before


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(tmp_path):
    """A run that has ended, with the files it was made from."""
    tiny.save_model(tmp_path / "model")
    write_rows(tmp_path / "p.jsonl", ROWS)
    run(settings(tmp_path), reward=tiny.letters, loggers=[])
    return tmp_path


def settings(folder, **changes):
    kwargs = {"path": str(folder / "p.jsonl"), "split": "all"}
    given = {**CHANGES, "envs.0.kwargs": kwargs, **changes}
    return tiny.run_settings(folder / "model", folder, **given)


def change_tasks(folder):
    write_rows(folder / "p.jsonl", [{**ROWS[0], "answer": "7"}, *ROWS[1:]])


def change_tokenizer(folder):
    train_tokenizer([], 262).save_pretrained(folder / "model")


def change_reference(folder):
    shutil.copy(folder / "a" / "model" / "model.safetensors", folder / "model")


@pytest.mark.parametrize(
    ("change", "name"),
    [(change_tasks, "tasks"), (change_tokenizer, "tokenizer"), (change_reference, "reference")],
)
def test_a_resume_from_other_files_is_refused_by_name(files, change, name):
    change(files)
    with pytest.raises(ConfigError) as caught:
        run(
            settings(files, **{"ppo.num_iterations": 2}),
            reward=tiny.letters,
            loggers=[],
            resume=True,
        )
    said = str(caught.value)
    assert said.startswith(f"cannot resume {files}/a: the settings are the same")
    assert f": other {name} (" in said
    assert said.count("->") == 1
    assert "Put back the files" in said


def test_a_reference_that_is_not_used_may_change(tmp_path):
    tiny.save_model(tmp_path / "model")
    write_rows(tmp_path / "p.jsonl", ROWS)
    free = {"ppo.kl_placement": "none"}
    run(settings(tmp_path, **free), reward=tiny.letters, loggers=[])
    change_reference(tmp_path)
    more = settings(tmp_path, **free, **{"ppo.num_iterations": 2})
    assert run(more, reward=tiny.letters, loggers=[], resume=True).metrics["train/episodes"] == 16


def test_ranks_that_read_other_files_are_named(files, monkeypatch):
    def gathered(mine):
        return [mine, {**mine, "tasks": "other"}] if "tasks" in mine else [mine]

    monkeypatch.setattr(identity, "gather", gathered)
    with pytest.raises(BackendError, match=r"rank 0 and rank 1 differ: tasks .* and other"):
        run(
            settings(files, **{"ppo.num_iterations": 2}),
            reward=tiny.letters,
            loggers=[],
            resume=True,
        )


def test_a_resume_with_other_weights_of_a_reward_model_is_refused_by_name(tmp_path):
    tiny.save_model(tmp_path / "model")
    write_rows(tmp_path / "p.jsonl", ROWS)
    judge = judges.bert(tmp_path / "judge")
    rewards = [{"model": str(judge), "kwargs": {"head": "softmax[good]"}}, {"name": "constant"}]
    run(settings(tmp_path, rewards=rewards), loggers=[])
    more = settings(tmp_path, rewards=rewards, **{"ppo.num_iterations": 2})
    weights = load_file(judge / "model.safetensors")
    save_file({**weights, "classifier.bias": weights["classifier.bias"] + 1e-6},
              judge / "model.safetensors", {"format": "pt"})  # fmt: skip
    base._resolved.cache_clear()  # as in a new process
    with pytest.raises(ConfigError, match=r"other reward model [a-z_.]+ \(\w+ -> \w+\)\. Put back"):
        run(more, loggers=[], resume=True)
