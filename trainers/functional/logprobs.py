"""Log-probabilities of given tokens straight from hidden states, in chunks.

The logits of a large batch, [N, V], never exist at once: each chunk's are made, reduced to one
figure a token and dropped; the backward pass makes them again. Those of a single chunk are kept.

Shapes: N tokens, D hidden, V vocabulary.
"""

# torch's stubs leave `checkpoint` and `split` partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

EntropyMode = Literal["none", "metric", "loss"]

LOGITS_BYTES = 2**27
"""Memory of the logits that exist at once, float32: 8,192 tokens of a vocabulary of 4,096."""

LEAST = torch.finfo(torch.float32).min
"""Stands for a log-probability of -inf in products with probability 0."""

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
    finite = logprobs.clamp(min=LEAST)
    return -(logprobs.exp() * finite).sum(-1)


def _every_logprob(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    temperature: float,
    softcap: float | None,
    absent: Absent,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [N, V] of every token, and [N] of `targets`."""
    logits = tempered_logits(
        hidden, weight, bias, temperature=temperature, softcap=softcap, absent=absent
    )
    # One fused pass each way; log-sum-exp and a difference would read [N, V] five times.
    every = torch.log_softmax(logits, dim=-1)
    return every, every.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _chunk(*args: Any, entropy: EntropyMode, **settings: Any) -> tuple[Tensor, Tensor]:
    every, logprobs = _every_logprob(*args, **settings)
    if entropy == "none":
        return logprobs, torch.zeros_like(logprobs)
    return logprobs, entropy_of(every.detach() if entropy == "metric" else every)


class _Scored(torch.autograd.Function):
    """The same for a plain head, with the gradient written out.

        d logprob / d logits = (onehot(target) - p) / temperature

    p of a single chunk is kept, that of several is made again; either is read once backward, where
    autograd reads [N, V] three times and makes the entropy again as well.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's own
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        settings: dict[str, Any],
        has_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return logprobs [N] and entropies [N]; without them zeros."""
        kept, keeps = None, hidden.shape[0] <= chunk
        logprobs, entropies = [], []
        for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            every, chosen = _every_logprob(states, ids, weight, bias, **settings)
            logprobs.append(chosen)
            shares = every.exp() if has_entropy or keeps else None
            if shares is not None and has_entropy:
                surprise = every.clamp_(min=LEAST) if settings["absent"] else every
                entropies.append(-torch.einsum("nv,nv->n", shares, surprise))
            kept = shares if keeps else None
        ctx.save_for_backward(hidden, weight, bias, targets, kept)
        ctx.chunk, ctx.settings = chunk, settings
        device = hidden.device.type
        mixed = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if mixed else hidden.dtype
        figures = torch.cat(logprobs)
        entropy = torch.cat(entropies) if has_entropy else torch.zeros_like(figures)
        ctx.mark_non_differentiable(entropy)
        return figures, entropy

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of states, head and bias, where they are asked for."""
        hidden, weight, bias, targets, kept = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head = weight.to(ctx.dtype)
        factors = gradients[0].unsqueeze(-1) / ctx.settings["temperature"]
        of_hidden, of_weight, of_bias = [], None, None
        parts = (part.split(ctx.chunk) for part in (hidden, targets, factors))
        for states, ids, factor in zip(*parts, strict=True):
            states = states.to(ctx.dtype)
            if kept is None:
                offset = None if bias is None else bias.to(ctx.dtype)
                every, _ = _every_logprob(states, ids, head, offset, **ctx.settings)
                shares = every.exp_()
            else:
                shares = kept
            slope = shares.mul_(-factor).scatter_add_(1, ids.unsqueeze(-1), factor)
            slope = slope.to(ctx.dtype)
            if wants_hidden:
                of_hidden.append((slope @ head).to(hidden.dtype))
            if wants_weight:
                part = (slope.T @ states).to(weight.dtype)
                of_weight = part if of_weight is None else of_weight.add_(part)
            if wants_bias:
                part = slope.sum(0).to(weight.dtype)
                of_bias = part if of_bias is None else of_bias.add_(part)
        return torch.cat(of_hidden) if wants_hidden else None, of_weight, of_bias, *(None,) * 4


def chunk_of(vocab_size: int) -> int:
    """Return the tokens whose logits fit the memory that is meant for them, at least one."""
    return max(1, LOGITS_BYTES // (4 * vocab_size))


def linear_logprobs(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
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
        chunk: tokens whose logits exist at once; None: as many as `LOGITS_BYTES` hold.
        entropy: "none"; "metric" without a gradient; "loss" with one.
        softcap: c of c * tanh(logits / c), for models that cap their logits.
        absent: ids of probability 0.
    """
    chunk = chunk_of(weight.shape[0]) if chunk is None else chunk
    settings = {"temperature": temperature, "softcap": softcap, "absent": absent}
    if entropy != "loss" and softcap is None and torch.is_grad_enabled():
        arguments = (hidden, weight, bias, targets, chunk, settings, entropy == "metric")
        logprobs, entropies = cast(tuple[Tensor, Tensor], _Scored.apply(*arguments))
        return logprobs, entropies if entropy == "metric" else None
    run = partial(_chunk, **settings, entropy=entropy)
    recompute = hidden.shape[0] > chunk and torch.is_grad_enabled()
    if recompute:  # one chunk alone fits by definition: keeping its logits saves a pass
        run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    pairs = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    parts = [run(states, ids, weight, bias) for states, ids in pairs]
    logprobs = torch.cat([part[0] for part in parts])
    return logprobs, None if entropy == "none" else torch.cat([part[1] for part in parts])
