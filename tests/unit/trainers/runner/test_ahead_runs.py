"""Whole runs whose rollouts are written ahead: they end, resume and are refused as others are."""

import os
import signal
import threading
from dataclasses import replace

import pytest

from tests import tiny
from trainers.collect import rollout_writer
from trainers.config import BackendConfig, Config, GenerationConfig
from trainers.config.backend import ZeroConfig
from trainers.errors import ConfigError, LostServerError
from trainers.generation.transformers import TransformersGenerator
from trainers.loggers.base import Logger
from trainers.run_dir.record import read_status
from trainers.runner.generators import check_generator
from trainers.runner.run import run

ITERATIONS = 4
CHANGES = {"ppo.num_iterations": ITERATIONS, "generation.ahead": 1, "eval.every": 2,
           "eval.num_tasks": 2}  # fmt: skip


class Told(Logger):
    """Keeps figures and notes; calls `at` after each iteration."""

    def __init__(self, at=lambda step: None):
        self.at, self.rows, self.notes = at, {}, {}

    def log(self, values, step, section="ppo"):
        self.rows.setdefault(step, {}).update(values)
        self.at(step)

    def note(self, title, text):
        self.notes[title] = text

    def close(self, status):
        self.status = status


@pytest.fixture
def played(monkeypatch):
    """Keep the tasks that each iteration's rollout was written for, in order."""
    kept, play = [], rollout_writer.play

    def call(*args, sampling, options, **rest):
        kept.append((sampling.iteration, tuple(options.indices)))
        return play(*args, sampling=sampling, options=options, **rest)

    monkeypatch.setattr(rollout_writer, "play", call)
    return kept


def started(folder, *, resume=False, at=lambda step: None, **changes):
    told = Told(at)
    config = tiny.run_settings(folder / "model", folder, **{**CHANGES, **changes})
    result = run(config, reward=tiny.letters, loggers=[told], resume=resume)
    return result, told


@pytest.fixture
def folder(tmp_path):
    tiny.save_model(tmp_path / "model")
    return tmp_path


def checkpoints(folder):
    return sorted(path.name for path in (folder / "a" / "checkpoints").glob("ppo_*"))


def idle():
    return not [thread for thread in threading.enumerate() if thread.name == "rollout"]


def test_a_run_plays_the_same_tasks_as_one_that_is_not_ahead_and_says_that_it_is(folder, played):
    result, told = started(folder)
    ahead, played[:] = dict(played), []
    assert "a resume writes" in told.notes["ahead"]
    assert [told.rows[step]["policy/version_lag"] for step in range(1, 5)] == [0, 4, 4, 4]
    assert all("timing_s/wait" in told.rows[step] for step in range(1, 5))
    assert {step for step, _ in result.evaluations} == {0, 2, 4}
    assert idle()
    started(folder, **{"run.name": "b", "generation.ahead": 0})
    assert ahead == dict(played)
    assert [iteration for iteration, _ in played] == list(range(ITERATIONS))


def test_an_error_of_the_thread_saves_what_was_learned_and_a_resume_asks_the_same_again(
    folder, played, monkeypatch
):
    generate = TransformersGenerator.generate

    def failing(self, requests, sampling):
        if threading.current_thread().name == "rollout" and sampling.iteration == 3:
            raise LostServerError("no server is left")
        return generate(self, requests, sampling)

    monkeypatch.setattr(TransformersGenerator, "generate", failing)
    with pytest.raises(LostServerError, match="no server is left"):
        started(folder)
    assert checkpoints(folder) == ["ppo_000003"]
    assert idle()
    monkeypatch.setattr(TransformersGenerator, "generate", generate)
    before, played[:] = list(played), []
    result, told = started(folder, resume=True)
    assert set(told.rows) == {4}
    assert told.rows[4]["policy/version_lag"] == 0
    assert played == before[3:]
    assert result.evaluations[-1][0] == ITERATIONS


def test_a_run_that_is_asked_to_stop_saves_and_drops_the_rollout_under_way(folder, played):
    def at(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    started(folder, at=at)
    assert read_status(folder / "a")["status"] == "interrupted"
    assert checkpoints(folder) == ["ppo_000002"]
    assert idle()
    before, played[:] = dict(played), []
    _, told = started(folder, resume=True)
    assert sorted(told.rows) == [3, 4]
    assert played[0] == (2, before[2])


ZERO = {"name": "deepspeed", "zero": ZeroConfig(stage=3)}


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (ZERO, r"keeps a copy.*Set --generation.ahead 0, or --backend.zero.stage 2"),
        ({"offload_between_phases": True}, r"leaves no time.*--backend.offload-between-phases fal"),
    ],
)
def test_what_leaves_no_room_for_it_is_refused(backend, message):
    config = Config(generation=GenerationConfig(ahead=1), backend=BackendConfig(**backend))
    with pytest.raises(ConfigError, match=message):
        check_generator(config)
    check_generator(replace(config, generation=GenerationConfig()))


def test_a_vllm_worker_on_the_gpu_of_its_rank_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"sleeps\. Set .*--generation.servers"):
        check_generator(Config(generation=GenerationConfig(ahead=1, engine="vllm")))
