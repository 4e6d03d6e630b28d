"""The best model by its held-out score, and the end of a run that gets no better."""

import io
import json
import shutil
from unittest import mock

import pytest

from llmgym.errors import RewardError
from tests import tiny
from tests.resume.trainee import differences, left_behind
from trainers.batch import Evaluation
from trainers.checkpoint.loading import find
from trainers.config import EvalConfig
from trainers.errors import CheckpointError
from trainers.loggers.console import ConsoleLogger
from trainers.loggers.jsonl import JsonlLogger
from trainers.run_dir.record import lines, read_status
from trainers.runner.held_out import HeldOut
from trainers.runner.run import run
from trainers.runner.stages.ppo_text import TextTraining

OFTEN = {
    "ppo.num_iterations": 8,
    "eval.num_tasks": 4,
    "eval.every": 1,
    "checkpoint.every": 0,
    "checkpoint.keep_last": 1,
}


def scored(mean):
    return Evaluation(env="e", mean=mean, ci_low=mean, ci_high=mean, scores=(mean,), rows=({},))


def after(means, **settings):
    """The state of held-out scores after evaluations with these means, each kept where best."""
    found = HeldOut(EvalConfig(**settings))
    for step, mean in enumerate(means):
        found.take([scored(mean)], step)
        if found.is_best:
            found.keep()
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def trained(model, folder, means, *, resume=False, loggers=(), **changes):
    """Run with held-out scores that are given by iteration."""
    given = iter(means)

    def evaluate(self):
        mean = next(given)
        if mean is None:
            raise RewardError("the reward of a task is broken")
        return [scored(mean)]

    config = tiny.run_settings(model, folder, **{**OFTEN, **changes})
    with mock.patch.object(TextTraining, "evaluate", evaluate):
        return run(
            config, reward=tiny.letters, loggers=[JsonlLogger(), *loggers], resume=resume
        ).run_dir


def weights(folder, name):
    return (folder / name / "model.safetensors").read_bytes()


def test_the_best_is_the_first_of_the_highest():
    found = after([0.2, 0.5, 0.4, 0.5])
    assert (found.best, found.best_step) == (0.5, 1)
    assert found.figures() == {"eval/best": 0.5, "eval/stale": 2.0}


@pytest.mark.parametrize(
    ("means", "delta", "stale"),
    [
        ([0.1], 0.0, 0),
        ([0.1, 0.1], 0.0, 1),
        ([0.1, 0.2, 0.3], 0.0, 0),
        ([0.1, 0.2, 0.15, 0.2], 0.0, 2),
        ([0.1, 0.14, 0.18, 0.22], 0.1, 0),  # small steps add up to an improvement
        ([0.1, 0.14, 0.18], 0.1, 2),
        ([-3.0, -3.5, -2.0], 0.0, 0),
    ],
)
def test_an_improvement_exceeds_the_last_one_by_min_delta(means, delta, stale):
    assert after(means, min_delta=delta).stale == stale
    assert after(means, min_delta=delta).best == max(means)


def test_patience_counts_evaluations_in_a_row():
    means = [0.1, 0.0, 0.2, 0.1, 0.1, 0.1]
    ended = [after(means[: n + 1], patience=3).has_converged for n in range(len(means))]
    assert ended == [False] * 5 + [True]
    assert not after(means).has_converged


def test_scores_that_were_saved_go_on_where_they_were():
    whole, first = after([0.1, 0.3, 0.2, 0.2], patience=2), after([0.1, 0.3], patience=2)
    second = HeldOut(EvalConfig(patience=2))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in (2, 3):
        second.take([scored(0.2)], step)
    assert second.has_converged
    assert second.state_dict() == whole.state_dict()


def test_a_run_ends_once_it_has_converged_and_keeps_the_best(model, tmp_path):
    means = [0.1, 0.2, 0.7, 0.6, 0.7]
    folder = trained(model, tmp_path, means, **{"eval.patience": 2, "checkpoint.every": 1})
    status = read_status(folder)
    assert (status["status"], status["iteration"]) == ("converged", 4)
    assert (
        "2 evaluations in a row did not improve; the best is 0.7 (iteration 2)"
        in (status["reason"])
    )
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["ppo_000002", "ppo_000004"], "the newest, and that of the best"
    assert weights(folder, "best") != weights(folder, "model")
    said = [one for one in lines(folder / "metrics.jsonl") if "eval/score" in one]
    assert [one["eval/best"] for one in said] == [0.1, 0.2, 0.7, 0.7, 0.7]
    assert [one["eval/stale"] for one in said] == [0, 0, 0, 1, 2]


def test_a_converged_run_goes_on_where_it_stopped_when_patience_is_off(model, tmp_path):
    means = [0.1, 0.5, 0.4, 0.3, 0.2, 0.6, 0.5, 0.4, 0.3]
    whole = trained(model, tmp_path / "whole", means)
    stopped = trained(model, tmp_path / "parts", means, **{"eval.patience": 2})
    assert find(stopped / "checkpoints", "ppo").number == 3
    shutil.rmtree(stopped / "model")
    trained(model, tmp_path / "parts", [], **{"eval.patience": 2}, resume=True)
    assert read_status(stopped)["status"] == "converged", "it is over, and exported"
    assert (stopped / "model").is_dir()
    trained(model, tmp_path / "parts", means[4:], resume=True)
    assert read_status(stopped)["status"] == "finished"
    assert differences(left_behind(tmp_path / "parts"), left_behind(tmp_path / "whole")) == []
    for name in ("best", "model"):
        assert weights(stopped, name) == weights(whole, name)


def test_a_reward_that_fails_on_held_out_tasks_costs_that_score_alone(model, tmp_path):
    means = [0.1, None, 0.3]
    folder = trained(model, tmp_path, means, **{"ppo.num_iterations": 2})
    assert read_status(folder)["status"] == "finished"
    log = (folder / "logs" / "latest" / "rank_0.log").read_text()
    assert "iteration 1 has no held-out score: the reward of a task is broken" in log


def test_a_best_that_cannot_be_written_is_not_counted_as_written(model, tmp_path):
    written = TextTraining.export

    def export(self, names):
        if "best" in names and self.learner.policy_version == 4:  # after the first iteration
            raise CheckpointError("no space")
        written(self, names)

    with mock.patch.object(TextTraining, "export", export):
        folder = trained(model, tmp_path, [0.1, 0.9, 0.5], **{"ppo.num_iterations": 2})
    assert weights(folder, "best") == weights(folder, "model"), "0.5 is better than what is there"


def test_the_end_names_the_best_iteration_after_base_was_made_again(model, tmp_path):
    changes = {"sft.num_epochs": 1, "data.num_examples": 16}
    streams = io.StringIO(), io.StringIO()
    first, second = ([ConsoleLogger(stream=one)] for one in streams)
    more = {**changes, "ppo.num_iterations": 3}
    changes["ppo.num_iterations"] = 2
    folder = trained(model, tmp_path, [0.1, 0.9, 0.2], loggers=first, **changes)
    shutil.rmtree(folder / "base")
    trained(model, tmp_path, [0.3], resume=True, loggers=second, **more)
    assert "0.9 at iteration 1\n" in streams[1].getvalue()
    assert "Held-out 0.1" in streams[1].getvalue()
