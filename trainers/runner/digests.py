"""What a run is made of behind its settings: digests of tasks, demonstrations and weights."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from llmgym.env import core_env
from llmgym.rewards.model import RewardModel
from llmgym.rewards.scale import walked
from llmgym.vector import LLMVectorEnv
from trainers.models.shards import full_weight
from trainers.supervised.preference_data import RewardModelExample
from trainers.supervised.sft_data import Demonstration

UNBOUNDED_TASKS = 1000
"""Tasks looked at of a source that has no end."""
MAX_TASKS = 100_000
"""Most tasks looked at; how many there are counts as well."""


def tasks_digest(*vectors: LLMVectorEnv) -> str:
    """Return the digest of environments' tasks: prompts, answers and every other column."""
    parts: list[Iterable[Any]] = []
    for envs in vectors:
        size = envs.num_tasks()
        tasks = envs.tasks(range(min(UNBOUNDED_TASKS if size is None else size, MAX_TASKS)))
        parts += [
            [size],
            [[task.id, task.answer, task.solution, dict(task.meta)] for task in tasks],
        ]
    return _digest(*parts)


def reward_digests(*vectors: LLMVectorEnv) -> dict[str, str]:
    """Return the digest of each reward model's weights by its name; they are in no checkpoint.

    Raises:
        RewardError: one does not load.
    """
    models: dict[str, RewardModel] = {}
    for env in (env for envs in vectors for env in envs.envs):
        for name, reward in walked(core_env(env).reward):
            if isinstance(reward, RewardModel):
                models.setdefault(f"reward model {name}", reward)
    loaded = {name: model.module() for name, model in models.items()}
    return {name: weights_digest(module) for name, module in loaded.items() if module is not None}


def demonstrations_digest(shown: Iterable[Demonstration]) -> str:
    """Return the digest of what the supervised stage learns, in order."""
    return _digest(
        ([dict(m) for m in demonstration.messages], demonstration.response)
        for demonstration in shown
    )


def labeled_digest(examples: Iterable[RewardModelExample]) -> str:
    """Return the digest of what a reward model learns, in its tokens and in order."""
    return _digest([example.texts, example.label, example.margin] for example in examples)


def weights_digest(module: nn.Module) -> str:
    """Return the digest of a module's weights by name, to the last bit; a collective."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict(keep_vars=True).items()):
        value = full_weight(weight)
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _digest(*parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for item in part:
            # What is no plain value has an address in its text, which is new in every process.
            text = json.dumps(item, sort_keys=True, default=lambda other: type(other).__name__)
            digest.update(text.encode() + b"\n")
    return digest.hexdigest()[:12]
