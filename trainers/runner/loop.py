"""The outer loop of PPO: log, evaluate, save and export what `ppo.train` yields."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from llmgym.errors import EnvTimeoutError, RewardError
from llmgym.plural import counted
from trainers.batch import Evaluation, Metrics
from trainers.checkpoint.state_files import random_state
from trainers.collect.base import Collector
from trainers.distributed.collectives import gather, phase
from trainers.errors import CheckpointError, ConfigError, LostServerError, MismatchError
from trainers.learner import Learner
from trainers.ppo import train
from trainers.runner.limits import RunLimits
from trainers.runner.session import Session

_log = logging.getLogger(__name__)

Iterations = Callable[[int], Iterator[Metrics]]
"""Yields the metrics of each iteration, from a given one on."""


class Training(Protocol):
    """What the loop works with: one for text, one for numeric environments."""

    @property
    def collector(self) -> Collector:
        """What acts."""
        ...

    @property
    def learner(self) -> Learner:
        """What learns."""
        ...

    def evaluate(self) -> list[Evaluation]:
        """Score the current policy on what is held out; empty where nothing is."""
        ...

    def export(self, name: str) -> None:
        """Write the current policy, or its `critic`, to a folder of the run: on rank 0.

        Raises:
            CheckpointError: it cannot be written; on rank 0 alone, once it has all weights.
        """


def improve(
    session: Session,
    training: Training,
    *,
    iterations: Iterations | None = None,
    limits: RunLimits | None = None,
) -> dict[str, float]:
    """Run PPO from where it is to its end, or until it is asked to stop.

    Args:
        session: of the run.
        training: what collects and learns.
        iterations: yields the metrics of each iteration from a given one on; None: PPO's.
        limits: ends the run before its last iteration; None: nothing does.

    Returns:
        The last iteration's figures by name.

    Raises:
        ConfigError: it has made more iterations than it is to make.
    """
    total = session.config.ppo.num_iterations
    limits = limits or RunLimits(session.config.distill)
    begin = _continued(session, training, limits)
    if begin > total:
        raise ConfigError(
            f"the run has made {counted(begin, 'iteration')}, and ppo.num_iterations {total} is "
            "fewer. Set more with --ppo.num-iterations, or name an earlier checkpoint after "
            "--resume."
        )
    session.start_loggers()
    if begin == 0:
        _evaluate(session, training, 0)
    is_done = begin >= total or limits.are_reached or session.held_out.has_converged
    if is_done:  # but perhaps not exported
        _close(session, begin)
        _finish(_written(training, ["model", "critic"]))
        return {}
    if iterations is None:
        iterations = partial(train, training.collector, training.learner, session.config)
    return _iterate(session, training, begin, iterations=iterations(begin), limits=limits)


def _iterate(
    session: Session,
    training: Training,
    begin: int,
    *,
    iterations: Iterator[Metrics],
    limits: RunLimits,
) -> dict[str, float]:
    """Run PPO from iteration `begin` on; return the last iteration's figures."""
    config, total = session.config, session.config.ppo.num_iterations
    values: dict[str, float] = {}
    done, own = begin, _own(training, limits)
    try:
        for step, metrics in enumerate(iterations, start=begin + 1):
            steps = {"train/optimizer_steps": float(training.learner.policy_version)}
            values = metrics.values() | steps
            session.log(values, step, "ppo", total)
            session.samples(training.collector.samples(), step)
            limits.count(values)
            ends = step == total or limits.are_reached
            last = session.should_stop() or ends
            if ends or (config.eval.every and step % config.eval.every == 0):
                _evaluate(session, training, step)
            last = last or session.held_out.has_converged
            done, own = step, _own(training, limits)
            if last or session.save_is_due(step):
                _save(session, training, step, own=own, must=last)
            if last:
                _close(session, step)
                break
    except (RewardError, EnvTimeoutError, LostServerError, MismatchError) as error:
        # Raised while acting: the weights are those of the last iteration.
        if isinstance(error, EnvTimeoutError) and session.world.size > 1:  # of this rank alone
            raise
        is_asked = session.should_stop()
        if done or is_asked:
            _save(session, training, done, own=own, must=False)
        if not is_asked:
            raise
        _log.warning("asked to stop, and no rollout was complete: %s", str(error).splitlines()[0])
    return values


def _own(training: Training, limits: RunLimits) -> dict[str, Any]:
    """Return this rank's states after an iteration, as they are now."""
    return {
        "collector": training.collector.state_dict(),
        "random": random_state(),
        "limits": limits.state_dict(),
    }


def _continued(session: Session, training: Training, limits: RunLimits) -> int:
    resumed = session.resumed("ppo")
    if resumed is None:
        return 0
    begin, loaded = resumed
    training.learner.load_state_dict(loaded.parts["learner"])
    training.collector.load_state_dict(loaded.own["collector"])
    if "limits" in loaded.own:  # those of 0.1 have none
        limits.load_state_dict(loaded.own["limits"])
    session.restore(loaded)
    return begin


def _close(session: Session, step: int) -> None:
    """Say that the run has converged, where it ends before its last iteration for that."""
    if session.held_out.has_converged and step < session.config.ppo.num_iterations:
        session.converge()
        _log.info("converged at iteration %d: %s", step, session.converged())


@phase("evaluate")
def _evaluate(session: Session, training: Training, step: int) -> None:
    """Score the policy, and write it to best/ if no other was better; a broken reward costs that.

    Where best/ cannot be written, the next score that is better than its model tries again.
    """
    try:
        evaluations = training.evaluate()
    except (RewardError, LostServerError) as error:  # on every rank
        message = str(error).splitlines()[0]
        _log.warning("iteration %d has no held-out score: %s", step, message)
        return
    if not evaluations:
        return
    session.evaluated(evaluations, step)
    if session.held_out.is_best and _written(training, ["best"]) is None:
        session.held_out.keep()


def _written(training: Training, names: Sequence[str]) -> str | None:
    """Export; return on every rank what went wrong with the disk, None if nothing did."""
    problem = None
    for name in names:  # one after another: rank 0 may have to hold each whole
        try:
            training.export(name)
        except CheckpointError as error:
            problem = str(error)
            _log.warning("%s", problem)
    return next((message for message in gather(problem) if message), None)


def _finish(problem: str | None) -> None:
    """Raise on every rank, once the work is safe, if the model could not be exported."""
    if problem is not None:
        raise CheckpointError(problem)


@phase("save")
def _save(
    session: Session, training: Training, step: int, *, own: dict[str, Any], must: bool
) -> None:
    session.save("ppo", step, parts={"learner": training.learner.state_dict()}, own=own, must=must)
    if not session.is_saved:  # model/ is never newer than what would continue it
        return
    problem = _written(training, ["model", "critic"])  # last: a start can make up for it
    if must:
        _finish(problem)
