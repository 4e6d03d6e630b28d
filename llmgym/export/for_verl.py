"""An environment of one turn for verl: a Parquet file of rows, and the function that scores them.

verl is told where the function is:

    custom_reward_function.path=.../llmgym/export/for_verl.py
    custom_reward_function.name=compute_score
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmgym.data.convert import write_table
from llmgym.errors import EnvContractError
from llmgym.export.episodes import Episode, Source


def verl(id: str, path: str | Path, *, size: int | None = None, **kwargs: Any) -> Path:
    """Write the tasks of an environment as verl reads them.

    A row has `data_source` (the id), `prompt` (messages), `ability`, `reward_model` (a style and
    the `ground_truth`) and `extra_info` (split, index, task_id and the environment's arguments).

    Args:
        id: a registered id, whose episodes have one turn.
        path: of the Parquet file.
        size: rows; None for every task, or 1000 of a source without end.
        **kwargs: for the environment, such as `split="test"`.

    Returns:
        The path.

    Raises:
        EnvContractError: an episode may have several turns, or there are fewer tasks.
        MissingExtraError: pyarrow is not installed.
    """
    source = Source(id, kwargs)
    if not source.is_single_turn():
        raise EnvContractError(
            f"verl scores one response, and an episode of {id} has several turns. "
            "TRL and verifiers play them: llmgym.export.trl, llmgym.export.verifiers"
        )
    arguments, path = json.dumps(dict(kwargs), sort_keys=True), Path(path)
    rows = [
        {
            "data_source": id,
            "prompt": row["prompt"],
            "ability": id.rpartition("/")[2],
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": {
                "split": str(kwargs.get("split", "train")),
                "index": row["index"],
                "task_id": row["task_id"],
                "kwargs": arguments,
            },
        }
        for row in source.rows(size)
    ]
    write_table(path, rows)
    return path


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,  # noqa: ANN401 - verl's argument
    extra_info: Mapping[str, Any] | None = None,
    **columns: Any,
) -> float:
    """Score one response, as verl asks its `custom_reward_function`.

    Args:
        data_source: the id.
        solution_str: the response.
        ground_truth: of the row; the environment knows it by the index.
        extra_info: of the row.
        **columns: other arguments of verl, which are not read.

    Raises:
        EnvContractError: the row was not written by `verl`, or the reward failed.
    """
    del ground_truth, columns
    if extra_info is None or not {"index", "kwargs", "task_id"} <= set(extra_info):
        raise EnvContractError(
            "compute_score reads rows that llmgym.export.verl wrote: extra_info has index, kwargs "
            f"and task_id; received {extra_info!r:.80}"
        )
    episode = _episode(data_source, str(extra_info["kwargs"]))
    episode.begin(int(extra_info["index"]))
    if episode.task_id != extra_info["task_id"]:
        raise EnvContractError(
            f"task {extra_info['index']} of {data_source} is another one than in the file: write "
            "the file again with the version of the environment that is installed"
        )
    episode.respond(solution_str)
    reward = episode.reward()
    if reward is None:
        raise EnvContractError(f"the reward of {data_source} failed for task {episode.task_id}")
    return reward


@lru_cache(maxsize=16)
def _episode(id: str, kwargs: str) -> Episode:
    return Episode(Source(id, json.loads(kwargs)))
