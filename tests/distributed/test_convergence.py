"""Two ranks end a run at the same iteration, though what they measure may differ in a last bit."""

from pathlib import Path

from tests import tiny
from tests.distributed.ranks import run_ranks
from trainers.batch import Evaluation
from trainers.config import EvalConfig
from trainers.distributed.collectives import World
from trainers.run_dir.record import read_status
from trainers.runner.held_out import HeldOut
from trainers.runner.run import run


def judged(by_rank):
    """What a rank makes of scores that differ between ranks."""
    found = HeldOut(EvalConfig(patience=1))
    for step, mean in enumerate(by_rank[World.from_launcher().rank]):
        found.take([Evaluation(env="e", mean=mean, ci_low=mean, ci_high=mean)], step)
        if found.is_best:
            found.keep()
    return found.best_step, found.has_converged, found.stale


def trained(model, folder):
    """Run where no improvement is large enough; what this rank has seen of it."""
    changes = {"eval.num_tasks": 4, "eval.every": 2, "eval.patience": 1, "eval.min_delta": 9.0}
    config = tiny.run_settings(model, folder, **changes, **{"ppo.num_iterations": 9})
    done = run(config, reward=tiny.letters, loggers=[])
    return [step for step, _ in done.evaluations], done.metrics["train/episodes"]


def test_rank_0_decides_what_is_an_improvement():
    low, high = 0.3, 0.1 + 0.2
    assert low < high
    assert run_ranks(judged, ([low, high], [high, low])) == [(1, False, 0)] * 2
    assert run_ranks(judged, ([high, low], [low, high])) == [(0, True, 1)] * 2


def test_both_ranks_end_a_run_that_has_converged(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    assert run_ranks(trained, str(model), str(tmp_path)) == [([0, 2], 16.0)] * 2
    status = read_status(Path(tmp_path) / "a")
    assert (status["status"], status["iteration"]) == ("converged", 2)
