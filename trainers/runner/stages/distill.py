"""Distillation: a student learns from a teacher what its own tokens, or the teacher's, are worth.

    student (model.path)  +  teacher (distill.teacher)  ->  model/, best/

`distill.method ppo` is the loop of `ppo.py` as it is: the teacher's part of the advantage comes
with the rollout. `gkd` and `sft_kd` follow the gradient of a divergence (`distillation/direct.py`).
All three take the same environments, iterations, prompts, rates, checkpoints and evaluations.
"""

from functools import partial

from trainers.config.environments import EnvFactory
from trainers.distillation import direct
from trainers.runner.limits import RunLimits
from trainers.runner.loop import improve
from trainers.runner.session import Session
from trainers.runner.stages.ppo_text import TextTraining, train_text
from trainers.runner.teachers import TeacherWriter, check_teacher


def train_stage(
    session: Session, env: EnvFactory | str | None, reward: object | None
) -> dict[str, float]:
    """Run the stages; what can be refused is refused before weights load.

    Returns:
        The last iteration's figures by name.
    """
    source = session.config.distill.teacher
    assert source is not None, "nothing is distilled"
    check_teacher(session.config, source)
    return train_text(session, env, reward, distill)


def distill(session: Session, training: TextTraining) -> dict[str, float]:
    """Run the iterations of `distill.method`, until their end or until a limit is reached."""
    limits, teacher = RunLimits(session.config.distill), training.teacher
    if not session.config.distill.is_direct:
        return improve(session, training, limits=limits)
    assert teacher is not None, "a teacher is loaded where one is set"
    iterations = partial(
        direct.train_directly,
        training.collector,
        TeacherWriter(teacher.policy) if teacher.writes else training.learner,
        training.learner,
        teacher.scores,
        session.config,
    )
    return improve(session, training, iterations=iterations, limits=limits)
