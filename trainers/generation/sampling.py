"""Drawing tokens: one counter-based uniform a token, and the inverse of the distribution function.

A draw is a pure function of (seed, iteration, sequence index, position): no generator has a state,
so rollouts do not depend on how rows are batched, on the order of ranks or on a resume.

B rows, V vocabulary.
"""

import torch
from torch import Tensor

from trainers.generation.base import Sampling

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
# 52 bits, not 53: then u * total < total in float64 for every total in [0.5, 2).
_BITS = 52


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
    key = torch.zeros((), dtype=torch.int64, device=index.device)
    for number in (seed, iteration, index, position):
        key = mix(key ^ (_signed(number) if isinstance(number, int) else number))
    return _shifted(key, 64 - _BITS).double() * 2.0**-_BITS


def stream_seed(seed: int, iteration: int, index: int, position: int) -> int:
    """Return the seed of an engine that draws by itself, 63 bits, of the same key as `uniforms`."""
    key = torch.zeros((), dtype=torch.int64)
    for number in (seed, iteration, index, position):
        key = mix(key ^ _signed(number))
    return int(_shifted(key, 1))


def sample(logits: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """Draw from softmax(logits / temperature) by inverting its distribution function.

    The token is the first whose cumulated probability exceeds u; a token of probability 0 adds
    nothing to the sum, so it is never the first, whatever u.

    Args:
        logits: [B, V].
        u: [B] float64 uniforms in [0, 1).
        sampling: `top_p` and `top_k` narrow the support; `greedy` ignores u.

    Returns:
        [B] int64 token ids.
    """
    if sampling.greedy:
        return logits.argmax(-1)
    probs = torch.softmax(logits.float() / sampling.temperature, -1)
    if sampling.top_k or sampling.top_p < 1.0:
        probs = _narrowed(probs, sampling)
    total = probs.cumsum(-1, dtype=torch.float64)
    threshold = u[:, None] * total[:, -1:]
    # total = [.2 .2 .7 1.], u = .2 -> 2: the first entry above u, past the token of probability 0.
    return torch.searchsorted(total, threshold, right=True)[:, 0]


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return log softmax(logits / temperature) at `tokens`, natural, in float32.

    Args:
        logits: [B, V].
        tokens: [B] ids.
        temperature: divides the logits.

    Returns:
        [B] log-probabilities.
    """
    scaled = logits.float() / temperature
    return scaled.gather(-1, tokens[:, None])[:, 0] - torch.logsumexp(scaled, -1)


def _narrowed(probs: Tensor, sampling: Sampling) -> Tensor:
    """Return [B, V] `probs` with the tokens outside of top_k and of the nucleus at 0.

    What is left is not scaled up: `sample` divides by its sum.
    """
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1, dtype=torch.float64) - ranked
    keep = before < sampling.top_p
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    keep[:, 0] = True
    return torch.zeros_like(probs).scatter(-1, order, ranked * keep)
