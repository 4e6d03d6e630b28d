"""A small run in a process of its own, which can stop or be killed, and what it left behind."""

import os
from pathlib import Path

import torch

from llmgym.rewards.base import UnitReward
from trainers.checkpoint.loading import find, load
from trainers.config.files import read
from trainers.loggers.base import Logger
from trainers.loggers.jsonl import JsonlLogger
from trainers.run_dir.record import lines
from trainers.runner.run import run

TEXT = {
    "sft.num_epochs": 1,
    "sft.batch_size": 8,
    "sft.learning_rate": 1e-3,
    "data.num_examples": 24,
    "ppo.num_prompts": 4,
    "ppo.samples_per_prompt": 2,
    "ppo.num_minibatches": 2,
    "ppo.num_epochs": 2,
    "ppo.kl_controller": "adaptive",
    "ppo.kl_horizon": 20.0,
    "ppo.kl_target": 0.01,
    "ppo.reward_normalize": "running",
    "generation.max_new_tokens": 4,
}
TURNS = TEXT | {
    "envs.0.id": "llmgym/GuessNumber-v0",
    "envs.0.kwargs": {"level": 2},
    "data.num_examples": 12,
    "ppo.kl_placement": "none",
    "ppo.kl_controller": "fixed",
    "ppo.num_prompts": 16,
    "sft.num_epochs": 8,
}
MIXTURE = TEXT | {
    "envs.0.id": "llmgym/Arithmetic-v0",
    "envs.0.curriculum.levels": [1, 2],
    "envs.0.curriculum.window": 3,
    "envs.0.curriculum.up": 0.01,
    "envs.0.curriculum.down": 0.0,
    "envs.1.id": "llmgym/GuessNumber-v0",
    "envs.1.kwargs": {"level": 2},
    "envs.1.weight": 2.0,
    "envs.2.id": "llmgym/LetterCount-v0",
    "envs.2.kwargs": {"size": 5},
}
LORA = TEXT | {
    "model.lora.rank": 2,
    "ppo.learning_rate": 1e-3,
    "ppo.critic_reads_logprobs": True,
}
CONTROL = {
    "run.kind": "control",
    "model.hidden_sizes": [8],
    "envs.0.id": "CartPole-v1",
    "ppo.kl_placement": "none",
    "ppo.num_prompts": 4,
    "ppo.samples_per_prompt": 1,
    "ppo.num_steps": 16,
    "ppo.num_minibatches": 2,
    "ppo.num_epochs": 2,
    "ppo.learning_rate": 1e-2,
    "ppo.gamma": 0.9,
    "ppo.reward_normalize": "running",
}
GROUPS = CONTROL | {
    "ppo.critic": "none",
    "ppo.advantage": "grpo",
    "ppo.num_prompts": 2,
    "ppo.samples_per_prompt": 3,
    "ppo.num_steps": 60,  # CartPole falls within them, at different times
    "ppo.gamma": 1.0,
}
EVERY = {
    "run.name": "a",
    "eval.num_tasks": 4,
    "eval.every": 2,
    "checkpoint.every": 2,
    "checkpoint.keep_last": 2,
}


def settings(kind, folder, iterations, **changes):
    """The settings of a run."""
    kinds = {
        "text": TEXT, "turns": TURNS, "mixture": MIXTURE, "lora": LORA, "control": CONTROL,
        "groups": GROUPS,
    }  # fmt: skip
    given = {"run.dir": str(folder), "ppo.num_iterations": iterations}
    return read([], {**kinds[kind], **EVERY, **given, **changes})


def letters(response):
    """A reward with something to tell apart in any text."""
    return sum(map(ord, response)) % 11 / 10


class Letters(UnitReward):
    """The same reward, which states its bounds, as a curriculum needs."""

    name, per_turn, collective = "letters", False, False

    def score(self, samples):
        return [letters(sample.response) for sample in samples]


class Stop(Logger):
    """Sends this process a signal at a step of a stage."""

    def __init__(self, number, section, step):
        self._when = (section, step)
        self._number = number

    def log(self, values, step, section="ppo"):
        if (section, step) == self._when:
            os.kill(os.getpid(), self._number)

    def start(self, run):
        """Nothing to open."""

    def samples(self, rows, step):
        """Nothing to note."""

    def evaluation(self, evaluations, step, figures):
        """Nothing to note."""

    def note(self, title, text):
        """Nothing to note."""

    def close(self, status):
        """Nothing to close."""

    def state_dict(self):
        """Nothing to keep."""
        return {}


def train(kind, folder, iterations, *, resume=False, stop=None, changes=None):
    """Run; `stop` is (signal, stage, step)."""
    loggers = [JsonlLogger(), *([Stop(*stop)] if stop else [])]
    config = settings(kind, folder, iterations, **(changes or {}))
    reward = None if kind in ("control", "groups") else letters
    reward = Letters() if kind == "mixture" else reward
    run(config, reward=reward, resume=resume, loggers=loggers)


def left_behind(folder):
    """What must not depend on interruptions: the last checkpoint and every metric."""
    path = Path(folder) / "a"
    loaded = load(find(path / "checkpoints", "ppo").path)
    own = dict(loaded.own)
    own["session"] = {k: v for k, v in own["session"].items() if k != "loggers"}
    metrics = {}
    for line in lines(path / "metrics.jsonl"):
        key = (line.get("sft/step"), line.get("train/global_step"), "eval/score" in line)
        metrics[key] = {
            name: value
            for name, value in line.items()
            if name != "attempt" and not name.startswith(("timing_s/", "perf/"))
        }
    return {"parts": dict(loaded.parts), "own": own, "metrics": metrics}


def differences(one, other, path=""):
    """The places where two nested values are not the same to the last bit."""
    if type(one) is not type(other):
        return [f"{path}: {type(one)} and {type(other)}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [x for key in one for x in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} items"]
        pairs = enumerate(zip(one, other, strict=True))
        return [x for i, (a, b) in pairs for x in differences(a, b, f"{path}/{i}")]
    same = one.equal(other) if isinstance(one, torch.Tensor) else repr(one) == repr(other)
    return [] if same else [f"{path}: {one} and {other}"]
