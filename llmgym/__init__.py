"""Gymnasium environments for language models: prompts, tasks, rewards, batched scoring.

Importing it needs numpy and gymnasium only, registers the built-in ids and those of the installed
libraries that it reads, and loads the installed plugins (entry points `llmgym.envs` and
`llmgym.rewards`).
"""

from llmgym.adapters.registration import register_readers
from llmgym.data.tasks import TaskSource, from_file, from_list, procedural
from llmgym.env import LLMEnv, LLMWrapper, SingleTurnEnv
from llmgym.envs import BUILT_IN, NUMERIC
from llmgym.messages import Completion, Message, Reply, Sample, Score, StopReason, Task
from llmgym.registry import (
    ids,
    load_entry_points,
    load_plugins,
    register,
    register_numeric,
    spec,
)
from llmgym.rewards.base import Reward, per_sample, resolve
from llmgym.vector import LLMVectorEnv

__all__ = [
    "Completion",
    "LLMEnv",
    "LLMVectorEnv",
    "LLMWrapper",
    "Message",
    "Reply",
    "Reward",
    "Sample",
    "Score",
    "SingleTurnEnv",
    "StopReason",
    "Task",
    "TaskSource",
    "from_file",
    "from_list",
    "ids",
    "load_plugins",
    "per_sample",
    "procedural",
    "register",
    "register_numeric",
    "resolve",
    "spec",
]

for _id, _target, _tags in BUILT_IN:
    register(_id, _target, tags=_tags)
for _id, _target, _tags in NUMERIC:
    register_numeric(_id, _target, tags=_tags)
register_readers()
load_entry_points()
