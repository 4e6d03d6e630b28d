"""A generator that fails costs no iteration: the run saves, says so, and continues."""

import logging

import pytest

from tests import tiny
from trainers.errors import LostServerError, MismatchError
from trainers.generation.transformers import TransformersGenerator
from trainers.runner.run import run

FAILING = 3
"""Rollout that fails, counted from 1."""
PROBED = 4
"""Requests of the probe of an architecture, which is no rollout."""


@pytest.fixture
def failing(monkeypatch):
    """Let the rollout of that number raise an error; evaluation counts as one."""
    calls = []
    generate = TransformersGenerator.generate

    def make(error):
        def call(self, requests, sampling):
            if len(requests) != PROBED:
                calls.append(sampling.greedy)
                if len(calls) == FAILING:
                    raise error
            return generate(self, requests, sampling)

        monkeypatch.setattr(TransformersGenerator, "generate", call)
        return calls

    return make


def settings(folder, **changes):
    model = tiny.save_model(folder / "model")
    return tiny.run_settings(model, folder, **{"ppo.num_iterations": 3, **changes})


@pytest.mark.parametrize("error", [LostServerError("no server is left"), MismatchError("too far")])
def test_a_run_whose_generator_fails_saves_first_and_continues_to_the_same_weights(
    tmp_path, failing, error, monkeypatch
):
    config = settings(tmp_path)
    failing(error)
    with pytest.raises(type(error)):
        run(config, reward=tiny.letters, loggers=[])
    saved = sorted(path.name for path in (tmp_path / "a" / "checkpoints").glob("ppo_*"))
    assert saved == ["ppo_000002"]
    monkeypatch.undo()
    resumed = run(config, reward=tiny.letters, loggers=[], resume=True)
    (tmp_path / "b").mkdir()
    straight = run(settings(tmp_path / "b"), reward=tiny.letters, loggers=[])
    one, other = (done.run_dir / "model" / "model.safetensors" for done in (resumed, straight))
    assert one.read_bytes() == other.read_bytes()


def test_an_evaluation_without_servers_is_left_out_with_a_warning(tmp_path, failing, caplog):
    # Call 1 evaluates at the start, 2 is the first rollout, 3 evaluates after it.
    changes = {"eval.num_tasks": 5, "eval.every": 1, "ppo.num_iterations": 1}
    calls = failing(LostServerError("no server is left"))
    with caplog.at_level(logging.WARNING):
        run(settings(tmp_path, **changes), reward=tiny.letters, loggers=[])
    assert calls[:FAILING] == [True, False, True]
    assert "iteration 1 has no held-out score: no server is left" in caplog.text


def test_the_generator_is_closed_however_the_run_ends(tmp_path, failing, monkeypatch):
    closed = []
    monkeypatch.setattr(TransformersGenerator, "close", lambda self: closed.append(1))
    failing(MismatchError("too far"))
    with pytest.raises(MismatchError):
        run(settings(tmp_path), reward=tiny.letters, loggers=[])
    assert closed == [1]
