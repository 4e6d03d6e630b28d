"""Held-out scores of text: each task is answered greedily once.

Tasks are dealt out over the ranks and every rank gets the whole result. Evaluation leaves no trace:
module modes and the global generators are afterwards what they were.
"""

import math
from collections.abc import Mapping
from typing import Any

from llmgym.data.tasks import TaskSource, disjoint
from llmgym.env import inner_env
from llmgym.vector import LLMVectorEnv
from trainers.batch import Evaluation
from trainers.collect.episodes import Slot
from trainers.collect.play import PlayOptions, play
from trainers.collect.rollout_checks import check_error_rate
from trainers.config import Config
from trainers.distributed.collectives import World, gather
from trainers.evaluation.statistics import summarize
from trainers.evaluation.undisturbed import undisturbed
from trainers.generation.base import Generator, Sampling
from trainers.models.chat import ChatFormat

COMPARED = 2000  # tasks compared of a source without an end


def check_disjoint(train: TaskSource, held_out: TaskSource) -> None:
    """Refuse held-out tasks that are also trained on; of endless sources the first are compared.

    Raises:
        TaskSourceError: they overlap; says by how much.
    """
    disjoint(train, held_out, cap=COMPARED)


def evaluate_text(
    envs: LLMVectorEnv,
    generator: Generator,
    *,
    chat: ChatFormat,
    config: Config,
    world: World,
    max_tokens: int | None = None,
) -> Evaluation:
    """Return the mean score of the first `eval.num_tasks` tasks, each answered greedily once.

    A task whose reward failed has the score NaN and counts in no mean.

    Args:
        envs: held-out environments of its own, as many slots on every rank.
        generator: writes with the weights to judge.
        chat: renders messages to ids.
        config: settings.
        world: this process among its peers.
        max_tokens: longest sequence the model takes, or None.

    Raises:
        RewardError: on every rank, when more rewards failed than `ppo.max_error_rate` allows.
        TaskSourceError: on every rank, when a prompt is too long and `data.too_long` is raise.
    """
    size = envs.num_tasks()
    tasks = range(min([config.eval.num_tasks] + ([] if size is None else [size])))
    results: dict[int, tuple[float, Mapping[str, Any]]] = {}
    with undisturbed():
        for indices in rounds(len(tasks), envs.num_envs, world):
            episodes = play(
                envs,
                generator,
                chat=chat,
                config=config,
                sampling=Sampling(greedy=True),
                options=PlayOptions(
                    indices=indices, index=indices, world=world, max_tokens=max_tokens
                ),
            )
            check_error_rate(episodes, config.ppo.max_error_rate)
            results |= {slot.index: _judged(slot) for slot in episodes.slots}
    merged = {index: slot for part in gather(results) for index, slot in part.items()}
    scores, rows = zip(*(merged[index] for index in tasks), strict=True)
    bounds = inner_env(envs.envs[0]).reward_bounds
    return summarize(config.env.label, scores, rows=rows, bounds=bounds)


def rounds(num_tasks: int, num_slots: int, world: World) -> list[list[int]]:
    """Deal tasks out: one for each slot of this rank, round by round, as often on every rank.

    Slots that are left over at the end repeat tasks; every task is in at least once.
    """
    each = num_slots * world.size
    total = -(-num_tasks // each) * each
    dealt = [i % num_tasks for i in range(total)][world.rank :: world.size]
    return [dealt[i : i + num_slots] for i in range(0, len(dealt), num_slots)]


def _judged(slot: Slot) -> tuple[float, Mapping[str, Any]]:
    """Return an episode's score, NaN where it means nothing, and its row."""
    score = float(sum(slot.rewards)) if slot.valid else math.nan
    opening = [f"[{message['role']}] {message['content']}" for message in slot.opening]
    prompt = "\n\n".join(opening) if len(opening) > 1 else str(slot.opening[0]["content"])
    return score, {
        "prompt": prompt,
        "completion": "\n\n".join(slot.completions),
        "reward": score,
        **slot.parts,
        "finish_reason": slot.finish_reason,
    }
