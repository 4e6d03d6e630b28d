"""The outer loop of PPO: log, evaluate, save and export what `ppo.train` yields."""

from collections.abc import Sequence
from typing import Protocol

from trainers.batch import Evaluation
from trainers.collect.base import Collector
from trainers.learner import Learner
from trainers.ppo import train
from trainers.runner.session import Session


class Training(Protocol):
    """What the loop works with: one for text, one for numeric environments."""

    collector: Collector
    learner: Learner

    def evaluate(self) -> list[Evaluation]:
        """Score the current policy on what is held out; empty where nothing is."""

    def export(self, names: Sequence[str]) -> None:
        """Write the current policy, or its critic, to folders of the run; every rank calls."""


def improve(session: Session, training: Training) -> dict[str, float]:
    """Run PPO from where it stands to its end, or until it is asked to stop.

    Returns:
        The last iteration's figures by name.
    """
    config, total = session.config, session.config.ppo.num_iterations
    begin = _continued(session, training)
    session.start_loggers()
    if begin == 0:
        _evaluate(session, training, 0)
    values: dict[str, float] = {}
    iterations = train(training.collector, training.learner, config, begin)
    for step, metrics in enumerate(iterations, start=begin + 1):
        steps = {"train/optimizer_steps": float(training.learner.policy_version)}
        values = metrics.values() | steps
        session.log(values, step, "ppo", total)
        session.samples(training.collector.samples(), step)
        last = session.should_stop() or step == total
        if step == total or (config.eval.every and step % config.eval.every == 0):
            _evaluate(session, training, step)
        if last or session.save_is_due(step):
            _save(session, training, step, must=last)
        if last:
            break
    return values


def _continued(session: Session, training: Training) -> int:
    found = session.resumed("ppo")
    if found is None:
        return 0
    begin, loaded = found
    training.learner.load_state_dict(loaded.shared["learner"])
    training.collector.load_state_dict(loaded.own["collector"])
    session.restore(loaded)
    return begin


def _evaluate(session: Session, training: Training, step: int) -> None:
    if session.evaluated(training.evaluate(), step):
        training.export(["best"])


def _save(session: Session, training: Training, step: int, *, must: bool) -> None:
    training.export(["model", "critic"])
    session.save(
        "ppo",
        step,
        shared={"learner": training.learner.state_dict()},
        own={"collector": training.collector.state_dict()},
        must=must,
    )
