"""Check an environment against its contract, which is the laws of `llmgym/laws.py`.

Every line that comes back says what failed and what to change; no lines means that it passed.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmgym.env import core_env
from llmgym.episodes import JUNK, play, unwarned
from llmgym.errors import RewardError
from llmgym.laws import LAWS, Subject, line_of
from llmgym.rewards.answers import check_answers


def check(
    env_id: str,
    *,
    episodes: int = 20,
    held_out: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> list[str]:
    """Check a registered environment and return one line for each failure.

    Args:
        env_id: the id.
        episodes: seeds that the gold answer, junk and the order of tasks are tried with.
        held_out: keyword arguments of the validation instance, whose tasks must not overlap; None
            compares nothing.
        kwargs: keyword arguments of the environment.
    """
    subject = Subject(id=env_id, kwargs=kwargs, episodes=episodes, held_out=held_out)
    try:
        subject.make().close()
    except Exception as error:  # noqa: BLE001 - whatever an author's code raises is a finding
        return [f"builds: {line_of(error)}. Every id must build with these arguments: {kwargs}"]
    with unwarned():
        return _broken_reward(subject) or [
            f"{name}: {line}" for name, law in LAWS.items() for line in _lines(law, subject)
        ]


def _broken_reward(subject: Subject) -> list[str]:
    """Return one line where no episode can be scored, which every law would repeat."""
    try:
        env = subject.make()
        check_answers(core_env(env).reward, core_env(env).tasks)
        env.reset(seed=0)
        play(env, JUNK["prose"])
    except RewardError as error:
        return [f"reward: {line_of(error)}. A reward scores every response with a number"]
    except Exception:  # noqa: BLE001 - a law says what it is
        return []
    return []


def _lines(law: Callable[[Subject], Iterator[str]], subject: Subject) -> Iterator[str]:
    try:
        yield from law(subject)
    except Exception as error:  # noqa: BLE001 - whatever an author's code raises is a finding
        yield f"{line_of(error)}. Make this case work"
