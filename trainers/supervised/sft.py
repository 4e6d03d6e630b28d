"""The supervised stage: next-token cross-entropy on the responses of demonstrations.

    loss = -(1/N) sum log p(response token | all before it)

N is the number of response tokens of a step over all ranks, the end token included, so the
gradient does not depend on how rows are split into micro-batches or over ranks. `train` is a
generator of metrics, as `ppo.train` is, and does no I/O. Its step number is all it remembers: the
order of an epoch is a function of (seed, epoch), the rate one of progress.

Shapes: B rows, P prompt tokens, T response tokens, L = P + T.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.backends.base import Engine
from trainers.batch import Metrics, TextInputs
from trainers.config import Config
from trainers.distributed.collectives import World, global_max, global_sum
from trainers.errors import NonFiniteError
from trainers.functional.packing import packed
from trainers.supervised.schedule import num_steps, rate, rows_of_step
from trainers.supervised.sft_data import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples padded to one shape; `response_mask` [B, T] is True on response tokens."""

    inputs: TextInputs
    response_mask: Tensor


def split(
    examples: Sequence[Example], holdout: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return (train, held out); a share `holdout` of the rows, drawn by seed, is held out."""
    order = np.random.default_rng((seed, len(examples))).permutation(len(examples))
    num_held_out = min(int(len(examples) * holdout), len(examples) - 1)
    picked = [examples[i] for i in order]
    return picked[num_held_out:], picked[:num_held_out]


def collate(examples: Sequence[Example]) -> Batch:
    """Pad prompts on the left and responses on the right; what stands in padding is 0."""
    width = max(1, *(len(one.prompt) for one in examples))
    length = max(1, *(len(one.response) for one in examples))
    tokens = torch.zeros((len(examples), width + length), dtype=torch.long)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, one in enumerate(examples):
        place = slice(width - len(one.prompt), width + len(one.response))
        tokens[row, place] = torch.tensor(one.prompt + one.response)
        mask[row, place] = True
    inputs = TextInputs(tokens=tokens, attention_mask=mask, num_prompt=width)
    return Batch(inputs=inputs, response_mask=mask[:, width:].clone())


def micro_batches(examples: Sequence[Example], budget: int, device: torch.device) -> list[Batch]:
    """Group this rank's examples by token budget, into the same number on every rank.

    Blank rows, without loss, fill up where there is less.
    """
    sizes = torch.tensor([[len(one.prompt), len(one.response)] for one in examples])
    groups = packed(sizes.reshape(-1, 2), budget)
    parts = [collate([examples[i] for i in group.tolist()]) for group in groups]
    number = int(global_max(torch.tensor(max(len(parts), 1), device=device)))
    blank = collate([Example(prompt=(0,), response=(0,))])
    blank.response_mask.fill_(False)
    filled = parts + [blank] * (number - len(parts))
    return [
        Batch(inputs=one.inputs.to(device), response_mask=one.response_mask.to(device))
        for one in filled
    ]


def update(engine: Engine, examples: Sequence[Example], config: Config) -> Metrics:
    """Take one optimizer step on this rank's share of a batch.

    Returns:
        Loss in nats a token and gradient norm, over all ranks.

    Raises:
        NonFiniteError: on every rank, before a weight is changed.
    """
    batches = micro_batches(examples, config.backend.micro_batch_tokens, engine.device)
    mine = sum(len(one.response) for one in examples)
    count = float(global_sum(torch.tensor(float(mine), device=engine.device)))
    losses = []
    for number, batch in enumerate(batches, start=1):
        output = engine.forward(
            batch.inputs, batch.response_mask, entropy="none", last=number == len(batches)
        )
        loss = -(output.logprobs * batch.response_mask).sum() / count
        engine.backward(loss)
        losses.append(loss.detach())
    total = float(global_sum(torch.stack(losses).double().sum()))
    if not math.isfinite(total):
        raise NonFiniteError(
            f"the loss of the supervised stage is not finite ({total}); no weight was "
            "changed. Often the rate is too high: lower --sft.learning-rate."
        )
    norm = engine.clip()
    engine.step()
    return Metrics.scalars({"sft/loss": total, "sft/grad_norm": norm})


@torch.no_grad()
def mean_loss(engine: Engine, examples: Sequence[Example], config: Config, world: World) -> float:
    """Return the loss in nats a token over all examples, which every rank has; NaN of none."""
    mine = list(examples[world.rank :: world.size])
    batches = micro_batches(mine, config.backend.micro_batch_tokens, engine.device)
    losses = []
    for batch in batches:
        output = engine.forward(batch.inputs, batch.response_mask, entropy="none")
        losses.append(-(output.logprobs * batch.response_mask).double().sum())
    summed = float(global_sum(torch.stack(losses).sum()))
    count = sum(len(one.response) for one in examples)
    return summed / count if count else math.nan


def train(
    engine: Engine,
    examples: Sequence[Example],
    config: Config,
    *,
    world: World,
    held_out: Sequence[Example] = (),
    start: int = 0,
) -> Iterator[Metrics]:
    """Learn the responses, one optimizer step at a time.

    Args:
        engine: the policy, a `CausalPolicy` at temperature 1, and its optimizer.
        examples: what is learned from, the same on every rank.
        config: settings.
        world: this process among its peers.
        held_out: rows whose loss is measured at the end of each epoch; `sft.stop_loss` ends the
            stage there.
        start: steps taken already, by the run this one continues.

    Yields:
        The metrics of each step.
    """
    total = num_steps(len(examples), config.sft)
    each_epoch = total // max(config.sft.num_epochs, 1)
    limit = -math.inf if config.sft.stop_loss is None else config.sft.stop_loss
    measured = math.isfinite(limit) and start > 0 and start % each_epoch == 0 and bool(held_out)
    if measured and mean_loss(engine, held_out, config, world) <= limit:
        return  # the stage had ended there
    for step in range(start, total):
        now = rate(step, total, config.sft)
        engine.set_learning_rate(now)
        picked = rows_of_step(step, len(examples), config.sft, config.run.seed)
        rows = picked[world.rank :: world.size]
        metrics = update(engine, [examples[row] for row in rows], config)
        figures = {"sft/step": step + 1, "sft/lr": now}
        if held_out and (step + 1) % each_epoch == 0:
            figures["sft/holdout_loss"] = mean_loss(engine, held_out, config, world)
        yield metrics | Metrics.scalars(figures)
        if figures.get("sft/holdout_loss", math.inf) <= limit:
            return
