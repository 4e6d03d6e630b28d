"""The steps of a supervised stage: each is logged, and states are saved on the way."""

from collections.abc import Sequence

from trainers.backends.base import Engine
from trainers.runner.session import Session, Stage
from trainers.supervised.fit import BatchT, ExampleT, Loss, fit, num_steps


def take_steps(
    session: Session,
    engine: Engine,
    rows: Sequence[ExampleT],
    loss: Loss[ExampleT, BatchT],
    *,
    held_out: Sequence[ExampleT],
    logs_of: Stage | None = None,
) -> dict[str, float] | None:
    """Take the steps of a stage, from where the run that is resumed left it.

    Args:
        session: of the run.
        engine: what learns.
        rows: what it learns from.
        loss: of the stage.
        held_out: rows kept back.
        logs_of: the stage that the logs tell of, where it is another.

    Returns:
        The figures of the last step; None if the run was asked to stop before it.
    """
    stage, total, begin = loss.stage, num_steps(len(rows), loss.settings), 0
    if resumed := session.resumed(stage):
        begin, loaded = resumed
        engine.load_state_dict(loaded.parts["engine"])
        session.restore(loaded)
    if logs_of is not None:
        session.restore_logs_of(logs_of)
    session.start_loggers()
    figures: dict[str, float] = {}
    steps = fit(engine, rows, loss, held_out=held_out, start=begin)
    for step, metrics in enumerate(steps, start=begin + 1):
        figures = metrics.values()
        session.log(figures, step, stage, total)
        stop = session.should_stop()
        is_epoch = step % (total // loss.settings.num_epochs) == 0
        if stop or is_epoch or session.save_is_overdue():
            session.save(stage, step, parts={"engine": engine.state_dict()}, own={}, must=stop)
        if stop and step < total:
            return None
    return figures
