"""Worker: iterations of this project, through `trainers.run` and nothing below it.

The same file drives the tree it lies in and the commit that ratios are taken against, whose
modules lie elsewhere: PYTHONPATH says which is imported. Two things are planted, and nothing else:
the tokens of each request are the shape's, and no token ends a response. What is timed is from one
call of a logger to the next: collecting, learning, and what the runner does between them.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import trainers
from llmgym.messages import Sample
from llmgym.rewards.base import Reward
from scripts.bench.shapes import Shape
from scripts.bench.turns import Turns
from trainers import ppo
from trainers.collect.ledger import TokenLedger
from trainers.config import SCHEMA
from trainers.generation.base import Request
from trainers.loggers.base import Logger
from trainers.models.chat import ChatFormat

try:
    from trainers.collect import rollout as collecting
    from trainers.collect import rollout_writer as playing
except ImportError:  # the name of both in version 0.1
    from trainers.collect import text as collecting  # pyright: ignore

    playing: Any = collecting

ENDLESS = 1_000_000
FILES = 4
"""Iterations' worth of prompts in the file; the sampler goes round."""


@final
class Length(Reward):
    """Scores by the length of the text, which costs nothing."""

    name = "length"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Return one number in [0, 1) for each."""
        return [len(str(sample.text)) % 7 / 7 for sample in samples]


@final
class Clock(Logger):
    """Ends an iteration wherever the run logs one."""

    def __init__(self, turns: Turns) -> None:
        """Take the worker's turns."""
        self._turns = turns
        self._tokens = 0.0

    def start(self, *_: Any, **__: Any) -> None:
        """Begin: models are built, nothing was collected."""
        self._turns.begin()

    def log(self, values: Mapping[str, float], step: int, section: str = "ppo") -> None:
        """Write the record of an iteration."""
        tokens = values["train/tokens"]
        self._turns.end(tokens=int(tokens - self._tokens), epochs=values["policy/epochs"])
        self._tokens = tokens

    def samples(self, *_: Any) -> None:
        """Show nothing."""

    def evaluation(self, *_: Any) -> None:
        """Nothing is evaluated."""

    def note(self, *_: Any) -> None:
        """Show nothing."""

    def close(self, *_: Any) -> None:
        """Close nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Keep nothing."""
        return {}


def planted(lengths: Sequence[int], turns: Turns) -> None:
    """Let each response have its length, and time the parts of an iteration."""
    requests = TokenLedger.requests

    def limited(ledger: TokenLedger) -> list[Request]:
        rows = requests(ledger)
        return [replace(request, max_new_tokens=lengths[request.index]) for request in rows]

    setattr(TokenLedger, "requests", limited)  # noqa: B010 - a final class, for the type checker
    setattr(ChatFormat, "eos_token_ids", property(lambda _: ()))  # noqa: B010
    ppo.learn = turns.timed("update", ppo.learn)
    playing.play = turns.timed("rollout", playing.play)
    collect = turns.timed("collect", collecting.TextCollector.collect)
    setattr(collecting.TextCollector, "collect", collect)  # noqa: B010


def settings(shape: Shape, model: str, folder: Path) -> dict[str, Any]:
    """Return the run's settings; what is not here is the default of the version that runs."""
    prompts = folder / "prompts.jsonl"
    rows = ({"prompt": shape.prompt(number)} for number in range(FILES * shape.num_prompts))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tuned = {} if shape.critic != "none" else {"critic": "none", "advantage": shape.advantage}
    return {
        "run": {"name": "bench", "dir": str(folder)},
        "model": {"path": model, "dtype": shape.dtype},
        "envs": [{"id": "llmgym/Prompts-v0", "kwargs": {"path": str(prompts), "split": "all"}}],
        "generation": {
            "max_prompt_tokens": shape.prompt_tokens,
            "max_new_tokens": shape.max_tokens,
        },
        "ppo": {
            "num_iterations": ENDLESS,
            "num_prompts": shape.num_prompts,
            "samples_per_prompt": shape.group,
            "num_epochs": shape.epochs,
            "critic": shape.critic,
            "target_kl": None,
            **tuned,
        },
        "eval": {"num_tasks": 0},
        "checkpoint": {"every": 0},
        "log": {"samples_every": 0, "wandb": {"enabled": False}},
    }


def main() -> None:
    """Run until the pipe is closed."""
    turns = Turns()
    model = turns.shape.pop("folder")
    changes = turns.shape.pop("settings", {})
    shape = Shape.of(turns.shape)
    planted(shape.lengths, turns)
    with tempfile.TemporaryDirectory() as folder:
        tree = settings(shape, model, Path(folder))
        for name, value in changes.items():
            section, _, field = name.partition(".")
            tree.setdefault(section, {})[field] = value
        config = SCHEMA.validate_json(json.dumps(tree))
        trainers.run(config, reward=Length(), loggers=[Clock(turns)])


if __name__ == "__main__":
    main()
