"""The outer loop: stages, evaluation, checkpoints, exports. The algorithm is `ppo.py`.

    run(config)  ->  sft (where sft.num_epochs > 0)  ->  base/  ->  ppo  ->  model/, critic/, best/
                 ->  distill (in place of ppo, where distill.teacher is set)  ->  model/, best/
                 ->  reward_model (where reward_model.num_epochs > 0, alone)  ->  model/

PPO always starts from a folder: base/, or `model.path` where nothing was learned before. So a
resumed run, which loads that folder again, has the same reference to the last bit.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmgym.addresses import load
from trainers.backends.zero.setup import check_zero
from trainers.batch import Evaluation
from trainers.checkpoint.loading import check_at
from trainers.config import Config
from trainers.config.checks import check_work, remarks
from trainers.config.environments import EnvFactory
from trainers.config.files import read
from trainers.config.python_parts import PythonPart, from_python
from trainers.config.secrets import with_secrets
from trainers.distributed.collectives import World, from_main, shutdown, start
from trainers.distributed.launcher import ends_with_launcher
from trainers.errors import ConfigError
from trainers.loggers.base import Logger
from trainers.loggers.default import default_loggers
from trainers.models.hf_logging import quietly
from trainers.redaction.text_files import private
from trainers.report.page import write_report
from trainers.report.pictures import draw
from trainers.run_dir.folder import open_run
from trainers.run_dir.record import dated
from trainers.run_dir.trust import named_code, note
from trainers.runner.assemble import check_shares, cpu_multiplies_bf16
from trainers.runner.session import Session
from trainers.runner.stages.reward_model import train_reward_model

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run leaves behind.

    Attributes:
        run_dir: the run folder.
        evaluations: (iteration, held-out scores) in order; iteration 0 is before PPO. The first and
            the last have scores and rows of single tasks, those between their mean alone.
        metrics: the last iteration's figures by name.
    """

    run_dir: Path
    evaluations: Sequence[tuple[int, Sequence[Evaluation]]]
    metrics: dict[str, float]


@private()
@quietly()
def run(
    config: Config,
    *,
    env: EnvFactory | str | None = None,
    reward: object | None = None,
    resume: bool | Path = False,
    clean: bool = False,
    loggers: Sequence[Logger] | None = None,
) -> Result:
    """Run the stages of a config on this rank.

    Args:
        config: settings.
        env: instead of `envs`: a registered id, or a callable that makes a Gymnasium environment.
            A callable gets those of `envs.0.kwargs`, for evaluation of `eval.kwargs` as well, and
            of `reward` that it takes by name.
        reward: instead of `rewards`: a plain function or a reward, or what `rewards` can hold.
        resume: continue the run's newest checkpoint, or the one at a path. What env and reward gave
            to the run is given again.
        clean: move an existing run folder away.
        loggers: told everything, on rank 0; None: the console, metrics.jsonl and W&B.

    Raises:
        ConfigError: a setting is not allowed, or not what the run was started with.
        CheckpointError: the run folder is in use, or no checkpoint is whole.
    """
    check_work(config, has_own=env is not None or reward is not None)
    config, env, reward, parts = from_python(config, env=env, reward=reward)
    config = with_secrets(config)
    world = World.from_launcher()
    check_shares(config, world)
    if isinstance(resume, Path):
        check_at(resume)
    heard = default_loggers(config) if loggers is None else loggers
    with ends_with_launcher():
        check_zero(config, world)
        start(world, config.backend.timeout_seconds, even_alone=config.backend.name == "deepspeed")
    has_ended = False
    try:
        config = _dated(config, resume=bool(resume))
        folder = open_run(
            config, resume=resume, clean=clean, command=sys.argv, world=world, parts=parts
        )
        with Session(
            config, world, folder, loggers=heard if world.is_main else (), resume=resume
        ) as session:
            metrics = _trained(session, env, reward, parts)
        if world.is_main:
            _report(folder.path)
        has_ended = True
        return Result(
            run_dir=folder.path, evaluations=session.held_out.evaluations, metrics=metrics
        )
    finally:
        shutdown(together=has_ended)


def _dated(config: Config, *, resume: bool) -> Config:
    """Return the settings with the day of the run, the same on every rank."""
    day = from_main(lambda: dated(config, resume=resume).run.date)
    return replace(config, run=replace(config.run, date=day))


def _trained(
    session: Session,
    env: EnvFactory | None,
    reward: object | None,
    parts: Sequence[PythonPart],
) -> dict[str, float]:
    """Say what the run is made of, then run its stages; return the last iteration's figures."""
    config, folder, is_main = session.config, session.folder.path, session.world.is_main
    hardware = {"has_gpu": torch.cuda.is_available(), "cpu_has_bf16": cpu_multiplies_bf16()}
    for message in remarks(config, **hardware) if is_main else ():
        _log.warning("%s", message)
    for part in parts:
        session.note(part.role, f"{part.setting}, {part.place}")
    if is_main:
        note(folder, read([folder / "config.yaml"]))
    with session.watched():
        session.identify_code(_code(config, parts))
        metrics = _learned(session, env, reward)
    if is_main:
        _draw(folder)
    return metrics


def _learned(session: Session, env: EnvFactory | None, reward: object | None) -> dict[str, float]:
    """Run the stages; return the last figures by name."""
    if session.config.reward_model.num_epochs:
        return train_reward_model(session)
    is_taught = session.config.distill.teacher is not None
    stage = "distill" if is_taught else f"ppo_{session.config.run.kind}"
    train = load(f"trainers.runner.stages.{stage}:train_stage")
    return train(session, env, reward)


def _code(config: Config, parts: Sequence[PythonPart]) -> dict[str, str]:
    """Return digests of the source code behind the settings, by its name; empty: it has none."""
    named = {f"{part.setting} {part.address}": part.digest[:12] for part in named_code(config)}
    from_python = {f"{part.role} {part.setting}": part.digest for part in parts}
    return named | from_python


def _report(run_dir: Path) -> None:
    try:
        write_report([run_dir])
    except (ConfigError, OSError) as error:  # the work is saved; the page can be made again
        _log.warning("could not write %s/report.html: %s", run_dir, error)


def _draw(run_dir: Path) -> None:
    try:
        draw(run_dir)
    except OSError as error:  # the work is saved; the picture can be drawn again
        _log.warning("could not draw the curves of %s: %s", run_dir, error)
