"""An environment for verifiers (its API of version 0.2): what `load_environment` returns."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from llmgym.addresses import load_module
from llmgym.data.tasks import as_dataset
from llmgym.errors import MissingExtraError, PluginError, RewardError
from llmgym.export.episodes import Episode, Source

EPISODE = "llmgym_episode"
"""Key of a rollout's state that holds its episode."""


def verifiers(
    id: str, *, size: int | None = None, eval_size: int | None = None, **kwargs: Any
) -> Any:  # noqa: ANN401 - a class of the library
    """Export an environment for verifiers, with the held-out tasks as its `eval_dataset`.

    Args:
        id: a registered id.
        size: rows to train on; None for every task, or 1000 of a source without end.
        eval_size: likewise of the held-out rows.
        **kwargs: for the environment; `split` is given by the two data sets.

    Returns:
        A `vf.SingleTurnEnv` or `vf.MultiTurnEnv`.

    Raises:
        MissingExtraError: the library is not installed, or `datasets` is not.
        EnvContractError: the id is no environment of text, or has fewer tasks.
    """
    try:
        library: Any = load_module("verifiers")
    except PluginError as error:
        message = 'the export needs verifiers: pip install "verifiers>=0.2,<0.3.1"'
        raise MissingExtraError(message) from error
    train, held_out = (Source(id, {**kwargs, "split": split}) for split in ("train", "test"))
    data = {
        "dataset": as_dataset(_rows(train, size)),
        "eval_dataset": as_dataset(_rows(held_out, eval_size)),
    }
    sources = {"train": train, "test": held_out}

    rubric = library.Rubric(funcs=[_reward_of(sources)], weights=[1.0])
    if train.is_single_turn():
        return library.SingleTurnEnv(rubric=rubric, **data)
    return _turns(library, sources)(rubric=rubric, **data)


def _begin(sources: Mapping[str, Source], state: Any) -> Episode:  # noqa: ANN401 - the library's
    """Begin the episode of a rollout, or return the one that has begun."""
    if state.get(EPISODE) is None:
        info = state["info"]
        state[EPISODE] = Episode(sources[info["split"]])
        state[EPISODE].begin(int(info["index"]))
    return state[EPISODE]


def _reward_of(sources: Mapping[str, Source]) -> Callable[..., Awaitable[float]]:
    """Return the reward function: what the episode of a rollout earned."""

    async def earned(state: Any, completion: Any) -> float:  # noqa: ANN401 - the library's
        episode = _begin(sources, state)
        if not episode.over:  # the last response, which no reply followed
            episode.respond(_last(completion))
        reward = episode.reward()
        if reward is None:
            raise RewardError(f"the reward failed for task {episode.task_id}")
        return reward

    return earned


def _turns(library: Any, sources: Mapping[str, Source]) -> Any:  # noqa: ANN401 - the library's
    """Return the class that plays episodes of several turns."""

    class Turns(library.MultiTurnEnv):
        """Replies as the environment does."""

        async def setup_state(self, state: Any) -> Any:  # noqa: ANN401 - the library's
            _begin(sources, state)
            return state

        async def env_response(self, messages: Any, state: Any, **options: Any) -> Any:  # noqa: ANN401
            del options
            episode = _begin(sources, state)
            replies = episode.respond(_last(messages))
            if episode.over:
                state["final_env_response"] = replies
            return replies

    return Turns


def _rows(source: Source, size: int | None) -> list[dict[str, Any]]:
    """Return the rows of a source with the columns that the library reads."""
    split = source.kwargs["split"]
    return [
        {
            "prompt": row["prompt"],
            "answer": row["answer"],
            "info": {"index": row["index"], "split": split, "task_id": row["task_id"]},
        }
        for row in source.rows(size)
    ]


def _last(messages: str | Sequence[Any]) -> str:
    """Return the text of the last response, of messages as mappings or as the library's objects."""
    if isinstance(messages, str):
        return messages
    for message in reversed(messages):
        fields = message if isinstance(message, dict) else vars(message)
        if fields.get("role") == "assistant":
            return str(fields.get("content") or "")
    return ""
