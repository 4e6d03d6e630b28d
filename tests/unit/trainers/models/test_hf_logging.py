"""Bars and advice of transformers: off in a run, as they were after it."""

import pytest
from transformers.utils import logging as noise

import trainers
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.runner import run as runner


@pytest.fixture
def _loud():
    """Let bars be drawn, and put back what was."""
    had, verbosity = noise.is_progress_bar_enabled(), noise.get_verbosity()
    noise.enable_progress_bar()
    noise.set_verbosity_warning()
    yield
    noise.set_verbosity(verbosity)
    if not had:
        noise.disable_progress_bar()


@pytest.mark.usefixtures("_loud")
def test_a_run_from_python_draws_no_bars_and_leaves_them_on(monkeypatch):
    seen = []

    def refuse(config, world):
        seen.append((noise.is_progress_bar_enabled(), noise.get_verbosity()))
        raise ConfigError("no")

    monkeypatch.setattr(runner, "check_shares", refuse)
    with pytest.raises(ConfigError, match="no"):
        trainers.run(read())
    assert seen == [(False, noise.ERROR)]
    assert (noise.is_progress_bar_enabled(), noise.get_verbosity()) == (True, noise.WARNING)
