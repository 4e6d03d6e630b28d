"""Rows put end to end: a model reads their real tokens alone, and a prompt that rows share once.

    padded   [ pad p0 p1 | r0 r1 pad ]            packed   p0 p1 r0 r1 q0 q1 q2 s0 t0 t1
             [ q0  q1 q2 | s0 pad pad ]                    |---------| |------| |  |---|
             [ q0  q1 q2 | t0 t1 pad ]                       one row    prompt  its responses

Exact, up to rounding: attention sees the row that a token belongs to, and nothing else. Everything
else in a decoder is computed a token at a time. It is a kernel of attention under a name of its
own, which transformers hands the layout; without a layout it is `sdpa`.

B rows, P prompt, T response tokens, N packed tokens, H heads, D head size.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trainers.batch import TextInputs

KERNEL = "llmgym_packed"
"""The name of the kernel, as `attn_implementation`; a model that has it reads packed rows."""

LEAN_KERNEL = "llmgym_packed_lean"
"""Another name of it, in models whose packed rows `lean_layers.py` reads where it can."""

KERNELS = (KERNEL, LEAN_KERNEL)

SHORT_ROW = 512
"""Up to here bfloat16 attention on a CPU is two products and a softmax in float32. torch's fused
kernel takes 1.4 to 2.2 times as long with its backward pass, and its gradients are less exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Rows of one length, end to end: each attends to itself.

    Attributes:
        length: tokens of a row.
        count: rows.
    """

    length: int
    count: int

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.length * self.count

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Return [tokens, H, D] of queries [H, tokens, D]; keys and values may have fewer heads."""
        rows = (
            states.unflatten(1, (self.count, self.length)).transpose(0, 1)
            for states in (query, key, value)
        )
        return causal(*rows, scale=scale).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A prompt and the G responses to it: each attends to the prompt and to itself.

    Attributes:
        prompt: tokens of the prompt.
        count: G.
        padded: [G * W] which of the responses' tokens, W of the longest; any at padding.
        own: [their sum] which of G * W are no padding.
    """

    prompt: int
    count: int
    padded: Tensor
    own: Tensor

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.prompt + self.own.shape[0]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Return [tokens, H, D] of queries [H, tokens, D]; keys and values may have fewer heads."""
        parts = [states.split([self.prompt, len(self.own)], 1) for states in (query, key, value)]
        (asked, asks), (known, knows), (read, reads) = parts
        first = causal(asked[None], known[None], read[None], scale=scale)
        keys, values = (
            torch.cat([prompt.expand(self.count, -1, -1, -1), self._rows(responses)], dim=2)
            for prompt, responses in ((known, knows), (read, reads))
        )
        rest = causal(self._rows(asks), keys, values, scale=scale)
        rest = rest.transpose(1, 2).flatten(0, 1).index_select(0, self.own)
        return torch.cat([first[0].transpose(0, 1), rest])

    def _rows(self, states: Tensor) -> Tensor:
        """Return [G, H, W, D] of the responses' [H, n, D]."""
        chosen = states.index_select(1, self.padded)
        return chosen.unflatten(1, (self.count, -1)).transpose(0, 1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the tokens of B padded rows are, packed.

    Attributes:
        source: [N] place of each packed token in the flat padded rows [B * L].
        positions: [N] position of each in its row.
        places: [B, T + 1] packed place of the last prompt token and of each response token; any at
            padding.
        pieces: the parts of N in their order, each with its attention.
        readers: modules of attention that were handed the layout.
    """

    source: Tensor
    positions: Tensor
    places: Tensor
    pieces: tuple[Run | Group, ...]
    readers: set[int]

    @classmethod
    def of(cls, inputs: TextInputs) -> "Layout":
        """Lay rows out: responses to equal prompts behind one prompt, all others row by row."""
        width, total = inputs.num_prompt, inputs.tokens.shape[1]
        sizes = torch.stack(
            [part.sum(1) for part in inputs.attention_mask.tensor_split([width], dim=1)], dim=1
        ).tolist()
        groups: dict[int, list[int]] = {}
        for row, number in enumerate(inputs.prompt_numbers.tolist()):
            groups.setdefault(number, []).append(row)
        source: list[Tensor] = []
        positions: list[Tensor] = []
        first = torch.zeros(len(sizes), 2, dtype=torch.long)  # of the prompt's end, the response
        pieces: list[Run | Group] = []
        at = 0
        for rows in groups.values():
            prompt, lengths = max(sizes[rows[0]][0], 1), [sizes[row][1] for row in rows]
            begin = rows[0] * total + width - prompt
            source.append(torch.arange(begin, begin + prompt))
            positions.append(torch.arange(prompt))
            end = at + prompt
            for row, length in zip(rows, lengths, strict=True):
                first[row] = torch.tensor([at + prompt - 1, end])
                source.append(torch.arange(length) + row * total + width)
                positions.append(torch.arange(prompt, prompt + length))
                end += length
            _append(pieces, prompt, lengths)
            at = end
        steps = torch.arange(total - width)
        lasts = torch.tensor([size[1] for size in sizes])[:, None] - 1
        behind = first[:, 1:] + steps.minimum(lasts).clamp(min=0)
        behind = torch.where(lasts < 0, first[:, :1], behind)
        device = inputs.tokens.device
        return cls(
            source=torch.cat(source).to(device),
            positions=torch.cat(positions).to(device),
            places=torch.cat([first[:, :1], behind], dim=1).to(device),
            pieces=tuple(_placed(piece, device) for piece in pieces),
            readers=set(),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Return [N, H, D] of queries [H, N, D]; keys and values may have fewer heads."""
        if len(self.pieces) == 1:
            return self.pieces[0].attend(query, key, value, scale)
        sizes = [piece.tokens for piece in self.pieces]
        parts = (states.split(sizes, 1) for states in (query, key, value))
        return torch.cat(
            [piece.attend(*part, scale) for piece, *part in zip(self.pieces, *parts, strict=True)]
        )


def _append(pieces: list[Run | Group], prompt: int, lengths: list[int]) -> None:
    """Add responses to one prompt; a single one joins the run before it where it is as long."""
    longest = max(lengths)
    if len(lengths) > 1 and longest:
        steps, sizes = torch.arange(longest), torch.tensor(lengths)[:, None]
        begins = sizes.cumsum(0) - sizes
        is_own = steps < sizes
        pieces.append(
            Group(
                prompt=prompt,
                count=len(lengths),
                padded=torch.where(is_own, begins + steps, 0).flatten(),
                own=is_own.flatten().nonzero().flatten(),
            )
        )
        return
    length = prompt + longest
    last = pieces[-1] if pieces else None
    if isinstance(last, Run) and last.length == length:
        pieces[-1] = Run(length=length, count=last.count + 1)
    else:
        pieces.append(Run(length=length, count=1))


def _placed(piece: Run | Group, device: torch.device) -> Run | Group:
    if isinstance(piece, Run):
        return piece
    return replace(piece, padded=piece.padded.to(device), own=piece.own.to(device))


def causal(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
    """Attend from the last W of S tokens to all before: [n, H, W, D].

    Args:
        query: [n, H, W, D].
        key: [n, K, S, D], each head for H / K heads of queries.
        value: as `key`; its type is that of the products, queries and keys may be more exact.
        scale: of the products; None: 1 / sqrt(D).
    """
    width, total, dtype = query.shape[2], key.shape[2], value.dtype
    if dtype == torch.bfloat16 and query.device.type == "cpu" and total <= SHORT_ROW:
        return _short(query, key, value, query.shape[3] ** -0.5 if scale is None else scale)
    mask = None if width == total else _visible(width, total, query.device)
    return F.scaled_dot_product_attention(
        query.to(dtype),
        key.to(dtype),
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _visible(width: int, total: int, device: torch.device) -> Tensor:
    """Return [W, S], True where the last W of S tokens see the S."""
    return torch.ones(width, total, dtype=torch.bool, device=device).tril(total - width)


def _short(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    rows, heads, width, size = query.shape
    total, times = key.shape[2], heads // key.shape[1]
    asked = query.reshape(-1, times * width, size).float()
    known, read = key.reshape(-1, total, size), value.reshape(-1, total, size)
    hidden = _hidden()[total - width : total, :total].repeat(times, 1)
    scores = torch.baddbmm(hidden, asked, known.transpose(1, 2).float(), alpha=scale)
    return torch.bmm(scores.softmax(2).to(read.dtype), read).view(rows, heads, width, size)


@cache
def _hidden() -> Tensor:
    """Return [SHORT_ROW, SHORT_ROW], 0 where a token sees another and -inf where it does not."""
    return torch.full((SHORT_ROW, SHORT_ROW), -torch.inf).triu(1)


def packed_attention(  # noqa: PLR0913 - transformers' own order
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend as `layout` says, queries [1, H, N, D] to [1, N, H, D]; without one as `sdpa` does."""
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
    layout.readers.add(id(module))
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    return layout.attend(query[0], key[0], value[0].to(dtype), scaling)[None], None


def longest_packed(module: nn.Module) -> float:
    """Return the tokens of the longest row that the transformers model in a module reads packed.

    0 where it reads padded rows; its window where attention slides, for a layout has no window.
    """
    models = (part for part in module.modules() if isinstance(part, PreTrainedModel))
    model = next(models, None)
    if model is None or model.config.get_text_config()._attn_implementation not in KERNELS:
        return 0.0
    return float(getattr(model.config.get_text_config(), "sliding_window", None) or math.inf)


for _name in KERNELS:
    ALL_ATTENTION_FUNCTIONS.register(_name, packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, sdpa_mask)
