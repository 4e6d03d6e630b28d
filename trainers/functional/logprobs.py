"""Log-probabilities of given tokens straight from hidden states, in chunks.

The logits of a whole batch, [N, V], never exist at once: each chunk's are made, reduced to one
figure a token and dropped; the backward pass makes them again.

Shapes: N tokens, D hidden, V vocabulary.
"""

# torch's stubs leave `checkpoint` and `split` partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

EntropyMode = Literal["none", "metric", "loss"]

Absent = tuple[tuple[int, int], ...]
"""Ranges of ids, the first and the one behind the last of each, that are never sampled."""


def without(logits: Tensor, absent: Absent) -> Tensor:
    """Set the logits [..., V] of absent ids to -inf, in place; return them."""
    for first, end in absent:
        logits[..., first:end] = -torch.inf
    return logits


def tempered_logits(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    *,
    temperature: float,
    softcap: float | None = None,
    absent: Absent = (),
) -> Float[Tensor, "N V"]:
    """Return fp32 logits [N, V] divided by the temperature; -inf of absent ids.

    The matrix product runs in the type of its inputs; what follows is fp32, because a bf16
    log-sum-exp is off by whole percents (verl#2953).
    """
    logits = F.linear(hidden, weight, bias).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = without(logits, absent)
    return logits if temperature == 1.0 else logits / temperature


def entropy_of(logprobs: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Return the exact entropy [N], in nats, of distributions given by log-probabilities [N, V].

    An impossible token (log-probability -inf) adds nothing.
    """
    finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    return -(logprobs.exp() * finite).sum(-1)


def _chunk(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    temperature: float,
    softcap: float | None,
    absent: Absent,
    entropy: EntropyMode,
) -> tuple[Tensor, Tensor]:
    logits = tempered_logits(
        hidden, weight, bias, temperature=temperature, softcap=softcap, absent=absent
    )
    # One fused pass each way; log-sum-exp and a difference would read [N, V] five times.
    every = torch.log_softmax(logits, dim=-1)
    logprobs = every.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if entropy == "none":
        return logprobs, torch.zeros_like(logprobs)
    return logprobs, entropy_of(every.detach() if entropy == "metric" else every)


def linear_logprobs(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    chunk: int = 512,
    entropy: EntropyMode = "none",
    softcap: float | None = None,
    absent: Absent = (),
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """Return log-probabilities [N] of `targets` and, where asked for, entropies [N], in nats.

        log softmax((hidden W^T + b) / temperature)[targets]

    Args:
        hidden: [N, D] states that predict the targets.
        weight: [V, D] output embedding.
        bias: [V] or None.
        targets: [N] token ids.
        temperature: divides the logits.
        chunk: tokens whose logits exist at once.
        entropy: "none"; "metric" without a gradient; "loss" with one.
        softcap: c of c * tanh(logits / c), for models that cap their logits.
        absent: ids of probability 0.
    """
    run = partial(_chunk, temperature=temperature, softcap=softcap, absent=absent, entropy=entropy)
    recompute = hidden.shape[0] > chunk and torch.is_grad_enabled()
    if recompute:  # one chunk alone fits by definition: keeping its logits saves a pass
        run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    pairs = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    parts = [run(states, ids, weight, bias) for states, ids in pairs]
    logprobs = torch.cat([part[0] for part in parts])
    return logprobs, None if entropy == "none" else torch.cat([part[1] for part in parts])
