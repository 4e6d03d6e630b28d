"""The two halves of a decoder layer of Llama's layout, with the gradient written out.

    q, k, v = rope(W_q n), rope(W_k n), W_v n      n = x / sqrt(mean(x^2) + eps) * g
    x'      = x + W_d (silu(W_g n) * W_u n)

torch computes each product, power and sum of this over all tokens and keeps most of them for the
backward pass: on a CPU a third of the time, and most of the memory. Here a block of tokens passes
through all of a half while it is in the processor's cache.

Products are computed in the type of autocast where it is on; states, norms, sums over tokens, and
queries and keys once they are turned, are float32.

Shapes: N tokens, D hidden, H heads of queries, K heads of keys, S size of a head, F inner width.
"""

# torch's stubs leave saved tensors and `torch.ops` untyped, and the parameters of a function's own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

TOKENS_AT_ONCE = 1024
"""Tokens that are computed together: few enough for the cache, enough for full matrix products."""


def _blocks(count: int) -> Iterator[slice]:
    step = TOKENS_AT_ONCE
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def _product_type(states: Tensor) -> torch.dtype:
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _norm(states: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write RMS-normed states [M, D] into `out`, of any type; return 1 / RMS [M, 1]."""
    size = states.norm(dim=-1, keepdim=True)
    scale = size.square_().div_(states.shape[-1]).add_(eps).rsqrt_()
    torch.mul(states * scale, weight, out=out)
    return scale


def _norm_gradient(
    gradient: Tensor, states: Tensor, scale: Tensor, weight: Tensor, of_weight: Tensor
) -> Tensor:
    """Return the gradient [M, D] of states from that of the normed ones; add that of the weight.

    dx = s (g * w - x s^2 mean(x * g * w)),     s = 1 / RMS
    """
    product = gradient * states
    of_weight.addmv_(product.t(), scale[:, 0])
    shared = torch.mv(product, weight).unsqueeze(-1) * scale.pow(3).div_(states.shape[-1])
    return (gradient * weight).mul_(scale).addcmul_(states, shared, value=-1.0)


def _turn(states: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Write [M, H, S] turned by the angles [M, 1, S] into `out`; a negative sine turns back."""
    half = states.shape[-1] // 2
    torch.mul(states, cos, out=out)
    out[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1.0)
    out[..., half:].addcmul_(states[..., :half], sin[..., half:])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to a float32 total, for left [M, A] and right [M, B]."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([part.to(dtype) for part in parts])


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        states: Tensor,
        norm: Tensor,
        eps: float,
        angles: tuple[Tensor, Tensor],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return queries [N, H, S], keys and values [N, K, S], and the states themselves."""
        count, dtype = len(states), _product_type(states)
        cos, sin = (part.unsqueeze(1) for part in angles)
        size, width = cos.shape[-1], weights[2].shape[0]
        joined = _joined(weights[:3], dtype)
        bias = _joined(weights[3:], dtype) if len(weights) > 3 else None
        turned = states.new_empty(count, (len(joined) - width) // size, size)
        values = torch.empty(count, width, dtype=dtype, device=states.device)
        normed = torch.empty(states.shape, dtype=dtype, device=states.device)
        scale = states.new_empty(count, 1)
        for block in _blocks(count):
            scale[block] = _norm(states[block], norm, eps, normed[block])
            made = torch.nn.functional.linear(normed[block], joined, bias)
            values[block] = made[:, -width:]
            _turn(made[:, :-width].unflatten(1, (-1, size)), cos[block], sin[block], turned[block])
        ctx.save_for_backward(states, norm, scale, normed, cos, sin, *weights)
        shared = values.view(count, -1, size)
        heads = turned.shape[1] - shared.shape[1]
        return turned[:, :heads], turned[:, heads:], shared, states.view_as(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of states, norm and weights."""
        states, norm, scale, normed, cos, sin, *weights = ctx.saved_tensors
        dtype, size, width = normed.dtype, cos.shape[-1], weights[2].shape[0]
        joined, heads = _joined(weights[:3], dtype), len(weights[0]) // size
        of_states, of_norm = torch.empty_like(states), torch.zeros_like(norm)
        of_weight = states.new_zeros(joined.shape)
        of_bias = states.new_zeros(len(joined)) if len(weights) > 3 else None
        for block in _blocks(len(states)):
            made = torch.empty(len(states[block]), len(joined), dtype=dtype, device=states.device)
            made[:, -width:] = gradients[2][block].flatten(1)
            turned = made[:, :-width].unflatten(1, (-1, size))
            for part, place in zip(gradients, (turned[:, :heads], turned[:, heads:]), strict=False):
                _turn(part[block], cos[block], -sin[block], place)
            _add_product(of_weight, made, normed[block])
            if of_bias is not None:
                of_bias += made.sum(0, dtype=torch.float32)
            back = (made @ joined).to(states.dtype)
            part = _norm_gradient(back, states[block], scale[block], norm, of_norm)
            torch.add(gradients[3][block], part, out=of_states[block])
        sizes = [len(part) for part in weights[:3]]
        biases = () if of_bias is None else of_bias.split(sizes)
        return of_states, of_norm, None, None, *of_weight.split(sizes), *biases


def projected(
    states: Float[Tensor, "N D"],
    norm: Float[Tensor, " D"],
    weights: Sequence[Tensor],
    angles: tuple[Float[Tensor, "N S"], Float[Tensor, "N S"]],
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries [N, H, S] and keys [N, K, S], turned, values [N, K, S], and the states.

    The states that are returned, for the sum that follows, bring their gradient to this half.

    Args:
        states: [N, D], float32.
        norm: [D] weight of the norm before.
        weights: [H S, D], [K S, D] and [K S, D] of queries, keys and values; then their biases, or
            none of them.
        angles: cosines and sines of the positions, the halves of each equal.
        eps: of the norm.
    """
    return cast(Any, _Projected.apply(states, norm, eps, angles, *weights))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        states: Tensor,
        norm: Tensor,
        eps: float,
        *weights: Tensor,
    ) -> Tensor:
        """Return [N, D]."""
        count, dtype, inner = len(states), _product_type(states), len(weights[0])
        joined, down = _joined(weights[:2], dtype), weights[2].to(dtype)
        result = torch.empty_like(states)
        normed = torch.empty(states.shape, dtype=dtype, device=states.device)
        made = torch.empty(count, 2 * inner, dtype=dtype, device=states.device)
        scale = states.new_empty(count, 1)
        for block in _blocks(count):
            scale[block] = _norm(states[block], norm, eps, normed[block])
            gate, up = torch.mm(normed[block], joined.t(), out=made[block]).split(inner, 1)
            product = torch.nn.functional.silu(gate).mul_(up)
            if dtype == states.dtype:
                torch.addmm(states[block], product, down.t(), out=result[block])
            else:
                torch.add(states[block], product @ down.t(), out=result[block])
        ctx.save_for_backward(states, norm, scale, normed, made, *weights)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of states, norm and weights."""
        states, norm, scale, normed, made, *weights = ctx.saved_tensors
        dtype, inner = made.dtype, len(weights[0])
        joined, down = _joined(weights[:2], dtype), weights[2].to(dtype)
        of_states, of_norm = torch.empty_like(states), torch.zeros_like(norm)
        of_joined, of_down = states.new_zeros(joined.shape), states.new_zeros(down.shape)
        for block in _blocks(len(states)):
            gate, up = made[block].split(inner, 1)
            come = gradient[block].to(dtype)
            slope = come @ down
            open_ = torch.nn.functional.silu(gate)
            back = torch.empty(len(come), 2 * inner, dtype=dtype, device=states.device)
            torch.mul(slope, open_, out=back[:, inner:])
            _add_product(of_down, come, open_.mul_(up))
            slope.mul_(up)
            torch.ops.aten.silu_backward.grad_input(slope, gate, grad_input=back[:, :inner])
            _add_product(of_joined, back, normed[block])
            part = (back @ joined).to(states.dtype)
            part = _norm_gradient(part, states[block], scale[block], norm, of_norm)
            torch.add(gradient[block], part, out=of_states[block])
        return of_states, of_norm, None, *of_joined.split(inner), of_down


def gated(
    states: Float[Tensor, "N D"],
    norm: Float[Tensor, " D"],
    weights: tuple[Float[Tensor, "F D"], Float[Tensor, "F D"], Float[Tensor, "D F"]],
    *,
    eps: float,
) -> Float[Tensor, "N D"]:
    """Return the states [N, D] after the layer's second half.

    Args:
        states: [N, D], float32.
        norm: [D] weight of the norm before.
        weights: of gate, up and down.
        eps: of the norm.
    """
    return cast(Tensor, _Gated.apply(states, norm, eps, *weights))


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        states: Tensor,
        norm: Tensor,
        eps: float,
    ) -> Tensor:
        """Return [N, D]."""
        result = torch.empty_like(states)
        scale = states.new_empty(len(states), 1)
        for block in _blocks(len(states)):
            scale[block] = _norm(states[block], norm, eps, result[block])
        ctx.save_for_backward(states, norm, scale)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of states and norm."""
        states, norm, scale = ctx.saved_tensors
        of_states, of_norm = torch.empty_like(states), torch.zeros_like(norm)
        for block in _blocks(len(states)):
            of_states[block] = _norm_gradient(
                gradient[block], states[block], scale[block], norm, of_norm
            )
        return of_states, of_norm, None


def normed(
    states: Float[Tensor, "N D"], norm: Float[Tensor, " D"], *, eps: float
) -> Float[Tensor, "N D"]:
    """Return states [N, D] divided by their root mean square, times the weight [D]."""
    return cast(Tensor, _Normed.apply(states, norm, eps))
