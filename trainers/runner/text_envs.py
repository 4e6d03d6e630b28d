"""The environments of a text run: slots to train in, one slot of each, and those of evaluation."""

from dataclasses import dataclass
from typing import Self, final

from llmgym.env import SingleTurnEnv, core_env
from llmgym.vector import LLMVectorEnv
from trainers.collect.environments import accepted, mixed_envs, text_envs
from trainers.collect.mixture import rank_slots
from trainers.config import Config
from trainers.config.environments import EnvFactory
from trainers.evaluation.text import check_disjoint
from trainers.runner.session import Session


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TextEnvs:
    """What a text run plays.

    Attributes:
        train: slots of this rank's episodes.
        names: of the environment of each of these slots.
        sources: a vector of each environment, in the order of `envs`; of a run with one, `train`.
        held_out: slots of evaluation of each environment; empty: none is evaluated.
    """

    train: LLMVectorEnv
    names: tuple[str, ...]
    sources: tuple[LLMVectorEnv, ...]
    held_out: tuple[LLMVectorEnv, ...]

    @classmethod
    def of(cls, session: Session, *, env: EnvFactory | str | None, reward: object | None) -> Self:
        """Build them and check that no held-out task is trained on.

        Raises:
            ConfigError: as of `text_envs`.
            TaskSourceError: the held-out tasks of an environment are also trained on.
        """
        config, world = session.config, session.world
        slots = rank_slots(config, world)
        names = tuple(config.envs[number].label for number in slots)
        if len(config.envs) == 1:
            train = text_envs(config, len(slots), env=env, reward=reward)
            sources: tuple[LLMVectorEnv, ...] = (train,)
        else:
            sources = sources_of(config, env=env, reward=reward)
            train = mixed_envs(config, slots, env=env, reward=reward)
        held_out = tuple(_held_out(session, sources, env=env, reward=reward))
        envs = cls(train=train, names=names, sources=sources, held_out=held_out)
        for vector in envs.all():
            session.bound(vector.limit)
        return envs

    @property
    def is_single_turn(self) -> bool:
        """True where every environment takes one response."""
        return all(isinstance(v.envs[0].unwrapped, SingleTurnEnv) for v in self.sources)

    def all(self) -> list[LLMVectorEnv]:
        """Return every vector once."""
        apart = [vector for vector in self.sources if vector is not self.train]
        return [self.train, *apart, *self.held_out]

    def close(self) -> None:
        """Close all of them."""
        for vector in self.all():
            vector.close()


def sources_of(
    config: Config, *, env: EnvFactory | str | None, reward: object | None
) -> tuple[LLMVectorEnv, ...]:
    """Return a vector of one slot of each environment."""
    return tuple(text_envs(alone, 1, env=env, reward=reward) for alone in config.alone)


def _held_out(
    session: Session,
    sources: tuple[LLMVectorEnv, ...],
    *,
    env: EnvFactory | str | None,
    reward: object | None,
) -> list[LLMVectorEnv]:
    """Build the environments of evaluation, whose tasks are not among those trained on.

    A callable that takes none of `eval.kwargs` makes one environment only: its tasks are scored
    greedily, and the header says that they are not held out.
    """
    config, world = session.config, session.world
    if not config.eval.num_tasks:
        return []
    num_envs = min(-(-config.eval.num_tasks // world.size), config.generation.batch_size)
    held_out = [
        text_envs(alone, num_envs, env=env, reward=reward, held_out=True) for alone in config.alone
    ]
    if callable(env) and not accepted(env, config.eval.kwargs):
        names = ", ".join(config.eval.kwargs) or "eval.kwargs"
        session.note("held out", f"nothing: env takes no {names}; scored on the tasks of training")
        return held_out
    for source in sources:
        for vector in held_out:
            check_disjoint(core_env(source.envs[0]).tasks, core_env(vector.envs[0]).tasks)
    return held_out
