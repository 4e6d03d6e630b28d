"""One call that gives a smaller model back what it lost: student, teacher and environment.

From Python:

    from trainers.runner.recover import recover

    folder = recover("runs/half/model", "runs/teacher/model", method="ppo", name="half-ppo",
                     max_minutes=10.0, overrides={"envs.0.id": "llmgym/Arithmetic-v0"})

and the same from the command line, in every setting:

    llmgym train distill --model.path runs/half/model --distill.teacher runs/teacher/model \
        --distill.method ppo --distill.max-minutes 10 --name half-ppo

Both leave `runs/half-ppo/model`, a plain folder of transformers, and continue with `resume=True` or
`--resume` where they were interrupted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trainers.config.files import preset, read
from trainers.loggers.base import Logger
from trainers.runner.run import run

DistillMethod = Literal["ppo", "gkd", "sft", "sft_kd"]


def recover(  # noqa: PLR0913 - a run, and what most callers set of it
    student: str | Path,
    teacher: str | Path,
    *,
    method: DistillMethod = "ppo",
    name: str = "distill",
    run_dir: str | Path = "runs",
    max_minutes: float | None = None,
    max_tokens: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    loggers: Sequence[Logger] | None = None,
) -> Path:
    """Distill a teacher into a student by the preset `distill`; return the student's new folder.

    Args:
        student: folder of the model that learns; it is left as it is.
        teacher: folder of the model that it was made from, of the same vocabulary.
        method: `ppo`, `gkd`, or `sft_kd` (`sft` for short); see `distill.method`.
        name: of the run.
        run_dir: folder of the run's folder.
        max_minutes: of training, at which it ends after an iteration; None: `ppo.num_iterations`.
        max_tokens: response tokens, at which it ends after an iteration; None: as above.
        overrides: other settings by dotted name, such as `envs.0.id`, `envs.0.kwargs`,
            `generation.max_new_tokens`, `ppo.num_iterations` or `run.seed`.
        resume: continue the run of this name from its newest checkpoint.
        loggers: told everything; None: the console, metrics.jsonl and W&B; (): nothing is.

    Returns:
        `run_dir/name/model`, written when the run ends. A run that was asked to stop returns as
        well, with the model so far: its `status.json` says "interrupted".

    Raises:
        ConfigError: vocabularies differ, or a setting is wrong; before weights load.
        CheckpointError: the run exists and is not resumed, or is in use.
    """
    settings: dict[str, Any] = {
        "model.path": str(student),
        "distill.teacher": str(teacher),
        "distill.method": "sft_kd" if method == "sft" else method,
        "distill.max_minutes": max_minutes,
        "distill.max_tokens": max_tokens,
        "run.name": name,
        "run.dir": str(run_dir),
    }
    config = read([preset("distill")], {**settings, **(overrides or {})})
    return run(config, resume=resume, loggers=loggers).run_dir / "model"
