"""The forward pass of Llama's layout, for writing text: few operations, on the model's own weights.

transformers' forward of one token costs more in allocations, masks and attention by head than in
matrix products where a model is small or computes in bfloat16 on a CPU. Here are the same equations
for the families of `FAMILIES`, on rows that share the columns of one cache (`SharedColumns`):

    x += W_o attention(rope(W_q n), rope(W_k n), W_v n),     n = rms(x)
    x += W_down (act(W_gate n) * W_up n),                    n = rms(x)

A prompt that several rows have is read once. `computes` says whether the equations are a model's.

M tokens, D hidden, H heads of queries, K heads of keys, S size of a head, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.activations import SiLUActivation

from trainers.generation.kv_cache import SharedColumns
from trainers.models.int8 import Int8Linear
from trainers.models.lean_layers import FIXED_ROPES

FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
TOLERANCES = {torch.float32: 1e-3}
"""Standard deviations of logits that rounding may make; 0.3 in smaller types and int8."""
CHUNK = 1024
"""Tokens of prompts read at once: what they need stays in the processor's cache."""


def has_layout(model: PreTrainedModel) -> bool:
    """Tell whether a model is of Llama's layout on a CPU, and nothing hooks into what is bypassed.

    On a GPU its own forward writes: what is saved here was measured on a CPU alone.
    """
    if type(model) not in FAMILIES or model.device.type != "cpu":
        return False
    rope = model.config.rope_parameters.get("rope_type", "default")
    # Checkpointing hooks into the embedding; `agrees` sees what a hook there changes.
    read = (nn.Linear, nn.Embedding)
    return (
        rope in FIXED_ROPES
        and not (model.training and model.config.attention_dropout)
        and not any(_is_hooked(part) for part in model.modules() if not isinstance(part, read))
    )


def longest_exact(model: PreTrainedModel) -> float:
    """Return the tokens up to which attention reaches a row's first one."""
    kinds = getattr(model.config, "layer_types", None)
    window = getattr(model.config, "sliding_window", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return float("inf")
    return window


@torch.no_grad()
def agrees(model: PreTrainedModel) -> bool:
    """Tell whether logits here are those of the model's own forward, in the type of its weights.

    Tried on two rows of a few tokens, of the model itself: its settings, adapters and weights.
    """
    device = model.device
    size = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    is_rounded = any(isinstance(part, Int8Linear) for part in model.modules())
    first = [[(7 * i + 3 * row) % size for i in range(5 + row)] for row in range(2)]
    more = [[step % size, (step + 5) % size] for step in range(2)]
    with torch.autocast(device.type, enabled=False):
        rows = LlamaRows(model, rows=2, tokens=9, dtype=model.dtype)
        rows.add(first)
        steps = [rows.logits.float().clone()]
        for tokens in more:
            live = torch.ones(2, dtype=torch.bool, device=device)
            rows.advance(torch.tensor(tokens, device=device), live)
            steps.append(rows.logits.float().clone())
        for row, prompt in enumerate(first):
            ids = torch.tensor([[*prompt, *(step[row] for step in more)]], device=device)
            expected = model(input_ids=ids, use_cache=False).logits[0, -3:].float()
            got = torch.stack([step[row] for step in steps])
            tolerance = 0.3 if is_rounded else TOLERANCES.get(model.dtype, 0.3)
            if not (got - expected).abs().max() <= tolerance * (1 + expected.std()):
                return False
    return True


def _is_hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _by_input(layer: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return [in, out] and bias; in float32 a copy: few rows take 0.6 to 0.9 of the time."""
    weight = layer.weight.to(dtype).t()
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return weight.contiguous() if dtype == torch.float32 else weight, bias


@final
class _Projection:
    """Linear layers that read the same states, their results side by side.

    Plain ones that hold another type are cast once and joined; others compute as they do.
    """

    def __init__(self, *layers: nn.Module, dtype: torch.dtype) -> None:
        plain = [type(layer) is nn.Linear and not _is_hooked(layer) for layer in layers]
        linear = cast(tuple[nn.Linear, ...], layers)
        self.width = sum(layer.out_features for layer in linear)
        self._parts: list[tuple[nn.Module | Tensor, Tensor | None]]
        if all(plain) and linear[0].weight.dtype != dtype:
            weight = torch.cat([layer.weight.to(dtype) for layer in linear])
            biases = [layer.bias.to(dtype) for layer in linear if layer.bias is not None]
            self._parts = [(weight.t(), torch.cat(biases) if biases else None)]
        else:
            self._parts = [
                _by_input(layer, dtype) if is_plain else (layer, None)
                for layer, is_plain in zip(linear, plain, strict=True)
            ]

    def __call__(self, states: Tensor, out: Tensor) -> Tensor:
        """Write results [M, width] of `states` [M, in] into `out`; return it."""
        start = 0
        for weight, bias in self._parts:
            if isinstance(weight, nn.Module):
                made = weight(states)
                end = start + made.shape[1]
                out[:, start:end] = made
            else:
                end = start + weight.shape[1]
                place = out[:, start:end]
                if bias is None:
                    torch.mm(states, weight, out=place)
                else:
                    torch.addmm(bias, states, weight, out=place)
            start = end
        return out


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any) -> "_Norm":  # noqa: ANN401 - a family's own class
        return cls(norm.weight, norm.variance_epsilon)

    def __call__(self, states: Tensor) -> Tensor:
        return F.rms_norm(states, self.weight.shape, self.weight, self.eps)


@final
class _Layer:
    """A decoder layer's parts."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:  # noqa: ANN401 - a family's class
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = (
            _Norm.of(layer.input_layernorm),
            _Norm.of(layer.post_attention_layernorm),
        )
        self.qkv = _Projection(attention.q_proj, attention.k_proj, attention.v_proj, dtype=dtype)
        self.out = _Projection(attention.o_proj, dtype=dtype)
        self.gate_up = _Projection(mlp.gate_proj, mlp.up_proj, dtype=dtype)
        self.down = _Projection(mlp.down_proj, dtype=dtype)
        self.act = mlp.act_fn
        self.scale: float = attention.scaling
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.norms = None if norms[0] is None else [_Norm.of(norm) for norm in norms]


@final
class LlamaRows:
    """Rows that are being written, each with its own beginning and all with one end.

    Args:
        model: of `has_layout`.
        rows: maximum number of rows.
        tokens: maximum tokens of a row, prompt and response.
        dtype: of matrix products, keys and values.

    Attributes:
        logits: [B, V] of the next token of each row.
    """

    refills = True

    def __init__(
        self, model: PreTrainedModel, *, rows: int, tokens: int, dtype: torch.dtype
    ) -> None:
        body, config = cast(Any, model.model), model.config
        self._embedding: Tensor = body.embed_tokens.weight
        self._device = self._embedding.device
        self._layers = [_Layer(layer, dtype) for layer in body.layers]
        self._norm = _Norm.of(body.norm)
        self._head = _Projection(cast(nn.Module, model.get_output_embeddings()), dtype=dtype)
        self._dtype = dtype
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size: int = body.layers[0].self_attn.head_dim
        self._cos, self._sin = self._angles(body.rotary_emb, tokens)
        self._cache = SharedColumns(len(self._layers), self._kv_heads, self._size)
        self._memory: dict[str, Tensor] = {}
        self._logits = self._space("logits", rows, self._head.width)
        self.logits = self._logits[:0]

    def __len__(self) -> int:
        """Count the rows."""
        return self._cache.rows

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read prompts, equal ones side by side and the shortest first, behind the rows so far."""
        groups = [(prompt, len(list(same))) for prompt, same in groupby(map(tuple, prompts))]
        slot = len(self)
        self._cache.add([len(prompt) for prompt in prompts], self._dtype, self._device)
        while groups:
            fitting = [
                count for count, (prompt, _) in enumerate(groups, 1)
                if count * len(prompt) <= CHUNK
            ]  # fmt: skip
            chunk = groups[: max(fitting, default=1)]
            groups = groups[len(chunk) :]
            slot = self._read(chunk, slot)
        self.logits = self._logits[: len(self)]

    def advance(self, tokens: Tensor, live: Tensor) -> None:
        """Append one token [B] to every row; all are live [B]."""
        del live
        self._cache.open_column()
        states = self._forward(tokens, self._cache.positions, self._attend)
        self.logits = self._head(states, self._logits[: len(self)])

    def keep(self, live: Tensor) -> Tensor:
        """Drop the rows that are not live [B]; return the row [b] that each place now has."""
        return self._cache.keep(live)

    def _angles(self, rotary: nn.Module, tokens: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin [tokens, 1, S]; the sine has the sign of rotate_half's result."""
        positions = torch.arange(tokens, device=self._device)
        cos, sin = rotary(self._embedding[:1, None], positions[None])
        half = self._size // 2
        return cos[0, :, None], torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], dim=-1)

    def _space(self, name: str, rows: int, width: int) -> Tensor:
        """Return memory [rows, width] that the next call of this name gets again.

        The system hands new memory over page by page, which takes longer than these products.
        """
        held = self._memory.get(name)
        if held is None or held.shape[0] < rows:
            held = torch.empty(rows, width, dtype=self._dtype, device=self._device)
            self._memory[name] = held
        return held[:rows]

    def _forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, last: Tensor | None = None
    ) -> Tensor:
        """Return normed states [M, D] of `tokens` [M] at `positions` [M]; those of `last` alone.

        Args:
            attend: from layer, queries [m, H, S], keys and values [M, K, S] to [m, H * S].
            last: [m] which states are read in the end; other ones leave before the last layer's
                products that only they need.
        """
        states = F.embedding(tokens, self._embedding)
        cos, sin = self._cos[positions], self._sin[positions]
        turned = self._heads + self._kv_heads
        for number, layer in enumerate(self._layers):
            normed = layer.before(states).to(self._dtype)
            space = self._space("qkv", states.shape[0], layer.qkv.width)
            heads = layer.qkv(normed, space).unflatten(1, (-1, self._size))
            read, values = heads[:, :turned], heads[:, turned:]
            if layer.norms is not None:
                parts = read.split([self._heads, self._kv_heads], dim=1)
                read = torch.cat([norm(x) for norm, x in zip(layer.norms, parts, strict=True)], 1)
            read = torch.addcmul(read * cos, read.roll(self._size // 2, -1).to(cos.dtype), sin)
            queries, keys = read[:, : self._heads], read[:, self._heads :]
            if last is not None and number == len(self._layers) - 1:
                queries, states = queries[last], states[last]
            mixed = attend(number, queries, keys, values)
            states += layer.out(mixed, self._space("out", states.shape[0], layer.out.width))
            self._mlp(layer, states)
        return self._norm(states).to(self._dtype)

    def _mlp(self, layer: _Layer, states: Tensor) -> None:
        normed = layer.between(states).to(self._dtype)
        space = self._space("gate_up", states.shape[0], layer.gate_up.width)
        gate, up = layer.gate_up(normed, space).chunk(2, dim=1)
        if isinstance(layer.act, nn.SiLU | SiLUActivation):
            F.silu(gate, inplace=True)
        else:
            gate.copy_(layer.act(gate))
        gate *= up
        states += layer.down(gate, self._space("out", states.shape[0], layer.down.width))

    def _attend(self, number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with one query a row [B, H, S] to all columns so far."""
        keys, values, mask = self._cache.append(number, keys, values)
        rows, shared = queries.shape[0], self._heads // self._kv_heads
        queries = queries * self._layers[number].scale
        queries = queries.to(self._dtype).reshape(rows * self._kv_heads, shared, self._size)
        # Products by hand: for one query a row on a CPU, torch's fused attention took 1.3 times as
        # long in float32, and 65 times in bfloat16 (16 rows, 4 heads, 128 columns; torch 2.13).
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if mask is not None:
            scores.view(rows, self._heads, -1).add_(mask[:, None])
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(self._dtype)
        return torch.bmm(weights, values).view(rows, self._heads * self._size)

    def _read(self, chunk: Sequence[tuple[Sequence[int], int]], slot: int) -> int:
        """Read prompts, each for as many rows as it has, from `slot` on; return the next slot."""
        width = len(chunk[-1][0])
        gaps = torch.tensor([width - len(prompt) for prompt, _ in chunk], device=self._device)
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt, _ in chunk]
        columns = torch.arange(width, device=self._device)
        positions = (columns - gaps[:, None]).clamp(min=0)
        counts = torch.tensor([count for _, count in chunk], device=self._device)
        owners = torch.arange(len(chunk), device=self._device).repeat_interleave(counts)
        end = slot + len(owners)
        mask = None
        if len(chunk[0][0]) < width:  # padding sees itself: a row of nothing would be NaN
            seen = (columns >= gaps[:, None])[:, None] & (columns <= columns[:, None])
            seen |= columns == columns[:, None]
            mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device)
            mask = mask.masked_fill(~seen, -torch.inf)[:, None]

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            split = [
                part.to(self._dtype).unflatten(0, (len(chunk), -1)).transpose(1, 2)
                for part in (queries, keys, values)
            ]
            self._cache.put(number, slice(slot, end), split[1], split[2], owners)
            size = split[0].shape[2]
            mixed = F.scaled_dot_product_attention(
                split[0],
                *(part.repeat_interleave(self._heads // self._kv_heads, 1) for part in split[1:]),
                attn_mask=None if mask is None else mask[:, :, -size:],
                is_causal=mask is None and size > 1,
                scale=self._layers[number].scale,
            )
            return mixed.transpose(1, 2).reshape(len(chunk) * size, -1)

        last = torch.arange(width - 1, len(chunk) * width, width, device=self._device)
        tokens = torch.tensor(padded, device=self._device).flatten()
        states = self._forward(tokens, positions.flatten(), attend, last)
        self._logits[slot:end] = self._head(
            states, self._space("prompts", len(chunk), self._head.width)
        )[owners]
        return end
