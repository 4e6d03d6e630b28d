"""An environment for TRL: a data set of prompts, a reward function and an `environment_factory`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from llmgym.data.tasks import as_dataset
from llmgym.export.episodes import Episode, Source


@final
class TrlEnvironment:
    """What TRL makes of an environment of several turns: `respond` is the tool of the model.

    Args:
        source: the environment.
    """

    def __init__(self, source: Source) -> None:
        self._episode = Episode(source)

    def reset(self, index: int, **columns: Any) -> None:
        """Begin the task of a row; the prompt is in the row already."""
        del columns
        self._episode.begin(int(index))

    def respond(self, text: str) -> str:
        """Give the next response of the task, and get the reply.

        Args:
            text: The response.

        Returns:
            The reply.
        """
        if self._episode.over:
            return "The task is over."
        messages = self._episode.respond(text)
        return "\n".join(str(message["content"]) for message in messages) or "The task is over."

    def get_reward(self) -> float | None:
        """Return what the episode earned; None where its reward failed."""
        return self._episode.reward()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrlExport:
    """What a trainer of TRL takes.

    Attributes:
        dataset: a `datasets.Dataset` with the columns prompt, index, task_id and answer.
        reward: for `reward_funcs`, where a response ends every episode; it pays None for a reward
            that failed.
        environment_factory: for the argument of this name, where an episode has several turns;
            None where a response ends it. The model then calls the tool `respond`.
    """

    dataset: Any
    reward: Callable[..., list[float | None]] | None
    environment_factory: Callable[[], TrlEnvironment] | None


def reward_of_responses(
    source: Source,
    completions: Sequence[str | Sequence[dict[str, Any]]],
    index: Sequence[int],
    **columns: Any,
) -> list[float | None]:
    """Score the responses to tasks of one turn, as TRL asks a reward function.

    Args:
        source: the environment.
        completions: texts, or dialogues whose last message is the response.
        index: of the task of each.
        **columns: other columns and arguments of TRL, which are not read.

    Returns:
        A reward for each; None where it failed.
    """
    del columns
    episode, rewards = Episode(source), []
    for completion, number in zip(completions, index, strict=True):
        episode.begin(int(number))
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        episode.respond(str(text))
        rewards.append(episode.reward())
    return rewards


def trl(id: str, *, size: int | None = None, **kwargs: Any) -> TrlExport:
    """Export an environment for TRL's trainers, such as `GRPOTrainer`.

    Args:
        id: a registered id.
        size: rows; None for every task, or 1000 of a source without end.
        **kwargs: for the environment, such as `split="test"`.

    Raises:
        MissingExtraError: the library `datasets` is not installed.
        EnvContractError: the id is no environment of text, or has fewer tasks.
    """
    source = Source(id, kwargs)
    dataset = as_dataset(source.rows(size))
    if not source.is_single_turn():
        factory = partial(TrlEnvironment, source)
        return TrlExport(dataset=dataset, reward=None, environment_factory=factory)
    reward = partial(reward_of_responses, source)
    return TrlExport(dataset=dataset, reward=reward, environment_factory=None)
