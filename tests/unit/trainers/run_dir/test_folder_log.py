"""The log of a run folder: its records, and no secret."""

import logging

import pytest

from trainers.config import Config, RunConfig
from trainers.distributed.collectives import World
from trainers.redaction.redact import redact
from trainers.run_dir.folder import open_run

SECRET = "canary-9f8e7d6c"


def opened(tmp_path, *, command=("llmgym", "train")):
    config = Config(run=RunConfig(name="a", dir=str(tmp_path)))
    return open_run(config, resume=False, clean=False, command=command, world=World())


def test_the_log_has_the_records_of_our_packages(tmp_path):
    folder = opened(tmp_path)
    logging.getLogger("trainers.runner.run").info("here")
    logging.getLogger("llmgym.env").warning("and here")
    folder.close()
    logging.getLogger("trainers.runner.run").info("after the end")
    text = folder.log_file.read_text()
    assert "here" in text
    assert "and here" in text
    assert "after the end" not in text


def broken_at(secret):
    raise ValueError(f"refused: {secret}")


def test_a_secret_is_found_nowhere_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    folder = opened(tmp_path, command=["llmgym", f"--envs.0.kwargs.key={SECRET}"])
    try:
        broken_at(SECRET)
    except ValueError:
        logging.getLogger("trainers").exception("failed with %s", SECRET)
    folder.set_status("failed", reason=f"refused: {SECRET}")
    folder.close()
    files = [file for file in folder.path.rglob("*") if file.is_file()]
    assert len(files) > 4
    assert not [file for file in files if SECRET in file.read_text()]
    assert "(hidden)" in folder.log_file.read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--api-key abc x", "--api-key (hidden) x"),
        ("password=abc", "password=(hidden)"),
        ("--token abc", "--token (hidden)"),
        ("--generation.max-new-tokens 64", "--generation.max-new-tokens 64"),
        ("--tokenizer.path gpt2", "--tokenizer.path gpt2"),
    ],
)
def test_words_after_a_secrets_name_are_hidden_and_others_are_not(text, expected):
    assert redact(text) == expected
