"""Worker: responses by this project's generator, with their log-probabilities.

The same file drives the commit that ratios are taken against, as `llmgym_ppo.py` does.
"""

import json
from dataclasses import replace
from typing import Any

import torch

from scripts.bench.shapes import Shape
from scripts.bench.turns import Turns
from trainers.config import SCHEMA, Config
from trainers.generation.base import Generator, Request, Sampling
from trainers.models.chat import ChatFormat
from trainers.models.loading import load_chat, load_policy, load_tokenizer

try:
    from trainers.runner.generators import GenerationModel, generator_of
except ImportError:  # version 0.1 had one generator, and made it in place
    from trainers.generation.transformers import TransformersGenerator

    GenerationModel = generator_of = None


def generator(config: Config, chat: ChatFormat) -> Generator:
    """Return the generator that a run of these settings would write with; nothing ends a row.

    It has the policy's weights, which an engine in another process is sent first.
    """
    policy = load_policy(config, chat)
    autocast = None if config.model.dtype == "float32" else getattr(torch, config.model.dtype)
    setattr(ChatFormat, "eos_token_ids", property(lambda _: ()))  # noqa: B010
    if generator_of is None or GenerationModel is None:
        make: Any = TransformersGenerator  # pyright: ignore
        return make(
            policy,
            eos_token_ids=(),
            pad_token_id=chat.pad_token_id,
            batch_size=config.generation.batch_size,
            autocast=autocast,
        )
    model = GenerationModel(policy=policy, weights="shared")
    made = generator_of(config, model, chat, autocast=autocast, cached=True)
    named = ((name, weight.detach()) for name, weight in policy.named_parameters())
    made.load_weights(named, 0)
    return made


def main() -> None:
    """Write until the pipe is closed."""
    turns = Turns()
    folder, engine = turns.shape.pop("folder"), turns.shape.pop("engine", None)
    shape = Shape.of(turns.shape)
    tree: dict[str, Any] = {
        "model": {"path": folder, "dtype": shape.dtype},
        "generation": {
            "max_new_tokens": shape.max_tokens,
            **({"engine": engine} if engine else {}),
        },
    }
    config = SCHEMA.validate_json(json.dumps(tree))
    chat = load_chat(config, load_tokenizer(config), env="llmgym/Prompts-v0")
    writer = generator(config, chat)
    lengths = shape.lengths
    requests = [
        Request(
            token_ids=chat.prompt_ids(
                [{"role": "user", "content": shape.prompt(row // shape.group)}]
            ),
            index=row,
            max_new_tokens=lengths[row],
        )
        for row in range(shape.rows)
    ]
    sampling = Sampling(seed=0)
    turns.begin()
    while True:
        sampling = replace(sampling, iteration=sampling.iteration + 1)
        responses = writer.generate(requests, sampling)
        turns.end(tokens=sum(len(response.token_ids) for response in responses))


if __name__ == "__main__":
    main()
