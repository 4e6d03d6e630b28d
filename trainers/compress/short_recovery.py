"""A few steps of distillation, to tell which of several plans is best after recovery.

    loss = KL(dense || smaller), mean over counted tokens of a batch

Ranks before and after recovery differ, so that candidates are compared after a little of it. B
rows, L tokens, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainers.compress.database import blocks
from trainers.compress.token_rows import TokenRows

BATCH = 32
"""Rows of one step."""
RATE = 5e-4
"""Learning rate of the first step; it falls to 0 linearly."""
MAX_NORM = 1.0
"""Of the gradient, beyond which it is scaled down."""


def divergence(dense: PreTrainedModel, smaller: PreTrainedModel, rows: TokenRows) -> Tensor:
    """Return the sum over counted tokens of KL(dense || smaller) in nats, of rows [B, L]."""
    with torch.no_grad():
        theirs = dense(input_ids=rows.tokens, use_cache=False).logits[rows.counted].float()
    ours = smaller(input_ids=rows.tokens, use_cache=False).logits[rows.counted].float()
    p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


@torch.no_grad()
def model_kl(dense: PreTrainedModel, smaller: PreTrainedModel, rows: TokenRows) -> float:
    """Return the mean KL(dense || smaller) over the counted tokens of rows, in nats."""
    total = sum(float(divergence(dense, smaller, part)) for part in blocks(rows))
    return total / int(rows.counted.sum())


def recover_briefly(
    dense: PreTrainedModel, smaller: PreTrainedModel, rows: TokenRows, *, steps: int, seed: int
) -> None:
    """Let a smaller model learn what the dense one predicts; it is changed in place.

    Args:
        dense: the teacher.
        smaller: the student.
        rows: calibration.
        steps: optimizer steps.
        seed: of the order of the rows.
    """
    rng = torch.Generator().manual_seed(seed)
    weights = [weight.requires_grad_() for weight in smaller.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(rows), generator=rng)])
        index, order = order[:BATCH], order[BATCH:]
        part = TokenRows(rows.tokens[index], rows.mask[index], rows.counted[index])[:]
        loss = divergence(dense, smaller, part) / part.counted.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, MAX_NORM)
        optimizer.step()
        schedule.step()
    smaller.requires_grad_(False)
