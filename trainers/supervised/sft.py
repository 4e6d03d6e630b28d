"""The loss of SFT: next-token cross-entropy on the responses of demonstrations.

    loss = -(1/N) sum log p(response token | all before it)

N is the number of response tokens of a step over all ranks, the end token included.

Shapes: B rows, P prompt tokens, T response tokens, L = P + T.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from trainers.backends.base import Engine
from trainers.batch import Metrics, TextInputs
from trainers.distributed.collectives import global_sum
from trainers.functional.row_groups import text_groups
from trainers.supervised.fit import Loss, over_ranks
from trainers.supervised.sft_data import SFTExample


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTBatch:
    """Examples padded to one shape; `response_mask` [B, T] is True on response tokens."""

    inputs: TextInputs
    response_mask: Tensor


def split_rows(
    examples: Sequence[SFTExample], holdout: float, seed: int
) -> tuple[list[SFTExample], list[SFTExample]]:
    """Return (train, held out); a share `holdout` of the rows, drawn by seed, is held out."""
    order = np.random.default_rng((seed, len(examples))).permutation(len(examples))
    num_held_out = min(int(len(examples) * holdout), len(examples) - 1)
    picked = [examples[i] for i in order]
    return picked[num_held_out:], picked[:num_held_out]


def pad_around_response(examples: Sequence[SFTExample]) -> SFTBatch:
    """Pad prompts on the left and responses on the right; padding is 0."""
    width = max(1, *(len(example.prompt) for example in examples))
    length = max(1, *(len(example.response) for example in examples))
    tokens = torch.zeros((len(examples), width + length), dtype=torch.long)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, example in enumerate(examples):
        place = slice(width - len(example.prompt), width + len(example.response))
        tokens[row, place] = torch.tensor(example.prompt + example.response)
        mask[row, place] = True
    inputs = TextInputs(tokens=tokens, attention_mask=mask, num_prompt=width)
    return SFTBatch(inputs=inputs, response_mask=mask[:, width:].clone())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SFTLoss(Loss[SFTExample, SFTBatch]):
    """Cross-entropy in nats per response token, of a `CausalPolicy` at temperature 1.

    Attributes:
        packed_up_to: tokens of the longest row that the policy reads packed; padding of others
            counts.
    """

    stage = "sft"
    held_out_loss = "sft/holdout_loss"
    packed_up_to: float = 0.0

    def count(self, rows: Sequence[SFTExample]) -> int:
        """Return the number of response tokens."""
        return sum(len(row.response) for row in rows)

    def batches(self, rows: Sequence[SFTExample]) -> list[SFTBatch]:
        """Group examples by the token budget, on the device."""
        sizes = torch.tensor([[len(row.prompt), len(row.response)] for row in rows]).reshape(-1, 2)
        groups = text_groups(
            sizes,
            torch.arange(len(rows)),
            self.config.backend.micro_batch_tokens,
            packed_up_to=self.packed_up_to,
        )
        return [
            self._moved(pad_around_response([rows[i] for i in group.tolist()])) for group in groups
        ]

    def blank(self) -> SFTBatch:
        """Return a row without loss."""
        blank = pad_around_response([SFTExample(prompt=(0,), response=(0,))])
        blank.response_mask.fill_(False)
        return self._moved(blank)

    def _moved(self, batch: SFTBatch) -> SFTBatch:
        return SFTBatch(
            inputs=batch.inputs.to(self.device), response_mask=batch.response_mask.to(self.device)
        )

    def sums(self, engine: Engine, batch: SFTBatch, *, last: bool) -> dict[str, Tensor]:
        """Return the summed cross-entropy of the responses."""
        mask = batch.response_mask
        output = engine.forward(batch.inputs, mask, entropy="none", last=last)
        return {"loss": -(output.logprobs * mask).sum()}

    @torch.no_grad()
    def measure(
        self, engine: Engine, rows: Sequence[SFTExample], learned: Sequence[SFTExample] = ()
    ) -> Metrics:
        """Return the loss over all rows, which every rank has; NaN of none."""
        mine = self.batches(rows[self.world.rank :: self.world.size])
        losses = []
        for batch in over_ranks(mine, self.blank(), self.device):
            output = engine.forward(batch.inputs, batch.response_mask, entropy="none")
            losses.append(-(output.logprobs * batch.response_mask).double().sum())
        summed, count = float(global_sum(torch.stack(losses).sum())), self.count(rows)
        return Metrics.scalars({self.held_out_loss: summed / count if count else math.nan})
