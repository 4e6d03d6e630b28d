"""What a session saves, and when."""

import os
import signal

import pytest

from trainers.batch import Evaluation
from trainers.checkpoint import saving as checkpoint
from trainers.config.files import read
from trainers.distributed.collectives import World
from trainers.run_dir.folder import open_run
from trainers.run_dir.record import read_status
from trainers.runner import session as module
from trainers.runner.session import Session


@pytest.fixture
def session(tmp_path):
    config = read([], {"run.dir": str(tmp_path), "run.name": "a", "checkpoint.every": 3})
    folder = open_run(config, resume=False, clean=False, command=["train"], world=World())
    with Session(config, World(), folder, loggers=(), resume=False) as opened:
        yield opened


def refuse(*_):
    raise OSError("no space")


def test_a_failed_save_is_tried_again_after_the_next_iteration(session, monkeypatch):
    due = []
    for step in range(1, 6):
        session.log({}, step, "ppo", 9)
        due.append(session.save_is_due(step))
        with monkeypatch.context() as patch:
            if step == 3:
                patch.setattr(checkpoint, "write_parts", refuse)
            if due[-1]:
                session.save("ppo", step, parts={}, own={}, must=False)
    assert due == [False, False, True, True, False]
    assert [path.name for path in session.folder.checkpoints.iterdir()] == ["ppo_000004"]


def test_single_scores_are_kept_of_the_first_and_the_newest_evaluation(session):
    for step in range(4):
        scores = (float(step), float(step))
        one = Evaluation(
            env="e", mean=float(step), ci_low=0.0, ci_high=9.0, scores=scores, rows=({}, {})
        )
        session.evaluated([one], step)
    evaluations = session.held_out.evaluations
    assert [(step, done[0].mean) for step, done in evaluations] == [
        (step, float(step)) for step in range(4)
    ]
    assert [len(done[0].scores) for _, done in evaluations] == [2, 0, 0, 2]
    assert [len(done[0].rows) for _, done in evaluations] == [2, 0, 0, 2]


def test_a_signal_that_comes_while_ranks_are_asked_counts_the_next_time(session, monkeypatch):
    def signalled(asked):
        os.kill(os.getpid(), signal.SIGTERM)
        return asked

    with monkeypatch.context() as patch:
        patch.setattr(module, "global_max", signalled)
        assert not session.should_stop()
    assert session.should_stop()


@pytest.mark.parametrize("lost", [False, True])
def test_a_rank_without_its_launcher_stops_and_says_so(lost, session, monkeypatch, caplog):
    monkeypatch.setattr(module, "is_lost", lambda: lost)
    assert [session.should_stop(), session.should_stop()] == [lost, lost]
    assert caplog.text.count("is gone: the ranks save and stop. Continue with the same") == lost


class Closing:
    """A logger in whose last moments signals arrive."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def start(self, *_):
        """Open."""

    def close(self, status):
        """Receive the signals."""
        for number in self.numbers:
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("numbers", [(), (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGHUP,)])
def test_a_signal_in_the_closing_moments_leaves_no_lock(numbers, tmp_path):
    before = [signal.getsignal(one) for one in module.STOPPING]
    config = read([], {"run.dir": str(tmp_path), "run.name": "a"})
    folder = open_run(config, resume=False, clean=False, command=["train"], world=World())
    loggers = [Closing(*numbers)]
    with Session(config, World(), folder, loggers=loggers, resume=False) as opened:
        opened.start_loggers()
        assert (tmp_path / "a" / "run.lock").exists()
    assert not (tmp_path / "a" / "run.lock").exists()
    assert read_status(tmp_path / "a")["status"] == "finished"
    assert [signal.getsignal(one) for one in module.STOPPING] == before


def test_a_second_ctrl_c_in_the_closing_moments_ends_it_and_leaves_no_lock(tmp_path):
    config = read([], {"run.dir": str(tmp_path), "run.name": "a"})
    folder = open_run(config, resume=False, clean=False, command=["train"], world=World())
    session = Session(
        config, World(), folder, loggers=[Closing(signal.SIGINT, signal.SIGINT)], resume=False
    )
    with pytest.raises(KeyboardInterrupt), session as opened:
        opened.start_loggers()
    assert not (tmp_path / "a" / "run.lock").exists()
