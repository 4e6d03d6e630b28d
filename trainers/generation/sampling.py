"""Drawing tokens: one counter-based uniform a token, and the inverse of the distribution function.

A draw is a pure function of (seed, iteration, sequence index, position): no generator has a state,
so rollouts do not depend on how rows are batched, on the order of ranks or on a resume.

B rows, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trainers.generation.base import Sampling

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
# 52 bits, not 53: then u * total < total in float64 for every total in [0.5, 2).
_BITS = 52
BLOCK = 64
"""Tokens whose probabilities are summed before their sums are cumulated."""


def _signed(word: int) -> int:
    """Return the int64 with the bits of a 64-bit word."""
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift int64 words right and fill with zeros; torch's own shift copies the sign."""
    return (words >> bits) & (2 ** (64 - bits) - 1)


def mix(words: Tensor) -> Tensor:
    """Scramble int64 words [...] so that neighbours become unrelated; a bijection.

    Source: the finalizer of SplitMix64: Steele, Lea, Flood, OOPSLA 2014, "Fast splittable
    pseudorandom number generators", in the variant 13 of Stafford.
    """
    words = words + _signed(_GOLDEN)
    words = (words ^ _shifted(words, 30)) * _signed(_FIRST)
    words = (words ^ _shifted(words, 27)) * _signed(_SECOND)
    return words ^ _shifted(words, 31)


def uniforms(seed: int, iteration: int, index: Tensor, position: Tensor | int) -> Tensor:
    """Return the uniforms of (seed, iteration, index, position), float64 in [0, 1).

    The same bits on every device. Each number of the key is scrambled into the next, so that no
    two keys of a run share a stream.

    Args:
        index: [B] int64 sequence index, counted over all ranks; any shape.
        position: int64 actions sampled before this one, of a shape that broadcasts with `index`.

    Returns:
        What the shapes of `index` and `position` broadcast to; [B] for [B].
    """
    return uniforms_of(stream_keys(seed, iteration, index), position)


def stream_keys(seed: int, iteration: int, index: Tensor) -> Tensor:
    """Return the key of each sequence index [B], int64, that `uniforms_of` draws from."""
    key = torch.zeros((), dtype=torch.int64, device=index.device)
    for number in (seed, iteration, index):
        key = mix(key ^ (_signed(number) if isinstance(number, int) else number))
    return key


def stream_seed(seed: int, iteration: int, index: int, position: int) -> int:
    """Return the seed of an engine that draws by itself, 63 bits, of the same key as `uniforms`."""
    key = torch.zeros((), dtype=torch.int64)
    for number in (seed, iteration, index, position):
        key = mix(key ^ _signed(number))
    return int(_shifted(key, 1))


def uniforms_of(keys: Tensor, position: Tensor | int) -> Tensor:
    """Return the uniforms of `keys` [B] of `stream_keys` at `position`, as `uniforms`."""
    number = _signed(position) if isinstance(position, int) else position
    return _shifted(mix(keys ^ number), 64 - _BITS).double() * 2.0**-_BITS


class Drawn(NamedTuple):
    """Tokens [B] that were drawn, and their log-probabilities [B], natural, float32."""

    tokens: Tensor
    logprobs: Tensor


def draw_tokens(
    logits: Tensor, u: Tensor, sampling: Sampling, memory: Tensor | None = None
) -> Drawn:
    """Draw from softmax(logits / temperature) by inverting its distribution function.

    The token is the first whose cumulated probability exceeds u; a token of probability 0 adds
    nothing to the sum, so it is never the first, whatever u. Sums are float64.

    Args:
        logits: [B, V].
        u: [B] float64 uniforms in [0, 1).
        sampling: `top_p` and `top_k` narrow the support; `greedy` ignores u.
        memory: [at least B, V] float32 that the probabilities are written to; memory that is new
            at every step costs more than what is computed in it.

    Returns:
        Token ids, int64, and their log-probabilities in the distribution that is not narrowed.
    """
    probs = _probabilities(logits, sampling.temperature, memory)
    if sampling.greedy:
        tokens = logits.argmax(-1)
    elif sampling.top_k or sampling.top_p < 1.0:
        tokens = _inverse(_narrowed(probs, sampling), u)
    else:
        tokens = _inverse(probs, u)
    # By way of the most likely token: a probability that is tiny has an inexact logarithm.
    chosen = logits.gather(1, tokens[:, None])[:, 0].float() - logits.amax(-1).float()
    return Drawn(tokens, chosen / sampling.temperature + probs.amax(-1).log())


def _probabilities(logits: Tensor, temperature: float, memory: Tensor | None) -> Tensor:
    """Return float32 softmax(logits / temperature) [B, V], in `memory` where it is given."""
    if memory is None:
        return torch.softmax(logits.float() / temperature, -1)
    probs = memory[: len(logits)].copy_(logits)
    if temperature != 1.0:
        probs /= temperature
    return torch.softmax(probs, -1, out=probs)


def _inverse(weights: Tensor, u: Tensor) -> Tensor:
    """Return the first token [B] whose cumulated weight exceeds u [B] of the sum.

    Weights [B, V] are summed by blocks, and cumulated within one block alone: cumulating all takes
    longer than the softmax.

        weights   .1 .1 | .3 .2 | .0 .3      u = .6
        blocks     .2      .5      .3        cumulated .2 .7: block 1, of which .4 is left
        within            .3 .5              token 3
    """
    blocks, last = _block_sums(weights)
    cumulated = blocks.cumsum(-1)
    threshold = u[:, None] * cumulated[:, -1:]
    block = torch.searchsorted(cumulated, threshold, right=True)
    left = threshold - (cumulated - blocks).gather(1, block)
    places = block * BLOCK + torch.arange(BLOCK, device=block.device)
    inside = weights.gather(1, places.clamp(max=last)).double() * (places <= last)
    within = inside.cumsum(-1)
    # The sums of a block are rounded in another order; what is left stays inside it, above 0.
    left = left.clamp(min=0.0).minimum(within[:, -1:] * (1 - 2.0**-_BITS))
    # within = [.2 .2 .7 1.], left = .2 -> 2: the first above, past the token of probability 0.
    return (block * BLOCK + torch.searchsorted(within, left, right=True))[:, 0]


def _block_sums(weights: Tensor) -> tuple[Tensor, int]:
    """Return float64 sums [B, V / BLOCK] of weights [B, V], and the last id."""
    size = weights.shape[1]
    full = size - size % BLOCK
    sums = weights[:, :full].unflatten(1, (size // BLOCK, BLOCK)).sum(-1, dtype=torch.float64)
    if full < size:
        rest = weights[:, full:].sum(-1, keepdim=True, dtype=torch.float64)
        sums = torch.cat([sums, rest], dim=1)
    return sums, size - 1


def _narrowed(probs: Tensor, sampling: Sampling) -> Tensor:
    """Return [B, V] `probs` with the tokens outside of top_k and of the nucleus at 0.

    What is left is not scaled up: `_inverse` multiplies u by its sum.
    """
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1, dtype=torch.float64) - ranked
    keep = before < sampling.top_p
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    keep[:, 0] = True
    return torch.zeros_like(probs).scatter(-1, order, ranked * keep)
