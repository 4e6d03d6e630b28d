"""The keys and values of a batch that is being written.

`roomy_cache` is transformers' cache for any model. `SharedColumns` is that of `llama.py`:

    columns   0 1 2 3 4 5 6
    row 0     . . a b c d e      start 2
    row 1     f g h i j k l      start 0; the next token of every row goes to column 7

B rows, H heads, S tokens so far, D head size.
"""

from collections.abc import Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

ROOM = 64
"""Tokens that memory is asked for at a time."""
COLUMNS = 32
"""As `ROOM`, where attention may read all that was asked for."""


@final
class RoomyLayer(DynamicLayer):
    """Full attention's keys and values, with room behind them: a new token copies itself only.

    transformers' own layer copies all of them for every token, which is three quarters of the time
    of 120 tokens in 128 rows of a 5 M model on a CPU. What autocast would cast at every step is
    kept as it reads it.
    """

    _key_room: Tensor
    _value_room: Tensor

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Append [B, H, n, D] twice; return all keys and values [B, H, S + n, D]."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_room, self._value_room = _room(key_states), _room(value_states)
        elif end > self._key_room.shape[-2]:
            self._key_room = torch.cat([self._key_room, _room(key_states)], dim=-2)
            self._value_room = torch.cat([self._value_room, _room(value_states)], dim=-2)
        self._key_room[..., start:end, :] = key_states
        self._value_room[..., start:end, :] = value_states
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of `indices` [b]."""
        end = self.get_seq_length()
        self._key_room, self._value_room = self._key_room[indices], self._value_room[indices]
        self._show(end)

    def _show(self, end: int) -> tuple[Tensor, Tensor]:
        self.keys = self._key_room[..., :end, :]
        self.values = self._value_room[..., :end, :]
        return self.keys, self.values


def _room(states: Tensor) -> Tensor:
    """Return memory [B, H, n + ROOM, D] for states [B, H, n, D]."""
    rows, heads, new, size = states.shape
    device, dtype = states.device, states.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return torch.empty((rows, heads, new + ROOM, size), device=device, dtype=dtype)


def roomy_cache(config: PretrainedConfig) -> DynamicCache:
    """Return an empty cache; its sliding-window and state-space layers are transformers' own."""
    cache = DynamicCache(config=config)
    layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    cache.layers = layers
    return cache


def keep_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Drop all rows of a cache but those of `rows` [b]."""
    for layer in cast(list[Any], cache.layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(cast(torch.LongTensor, rows))  # states, and a hybrid's keys as well
        else:
            layer.batch_select_indices(rows)


@final
class SharedColumns:
    """Keys and values of rows that begin at different columns and end at the same one.

    A row that ends gives its place to the last one; a new row's prompt ends where all rows end.
    Columns before the first row's start are dropped when memory is asked for anew.

    Args:
        layers: number of layers.
        heads: K, of keys.
        size: D.

    Attributes:
        rows: B.
        used: columns that are written.
    """

    def __init__(self, layers: int, heads: int, size: int) -> None:
        self._heads, self._size = heads, size
        self._layers: list[tuple[Tensor, Tensor] | None] = [None for _ in range(layers)]
        self._capacity = (0, 0)
        self._mask: Tensor | None = None
        self.rows = self.used = 0

    @property
    def positions(self) -> Tensor:
        """The position [B] of each row's newest token."""
        return self.used - 1 - self._start

    def add(self, lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        """Make place for new rows of `lengths`, which `put` fills."""
        if self.rows == 0:
            self.used, self._capacity = 0, (0, 0)
            self._layers = [None for _ in self._layers]
            self._start = torch.zeros(0, dtype=torch.long, device=device)
            self._dtype = dtype
        rows, most = self.rows + len(lengths), max(lengths)
        if rows > self._capacity[0] or most > self.used:
            self._move(rows, most)
        new = self.used - torch.tensor(lengths, device=device)
        self._start, self.rows = torch.cat([self._start, new]), rows
        self._changed()

    def put(self, layer: int, rows: slice, keys: Tensor, values: Tensor, owners: Tensor) -> None:
        """Write what was computed of prompts, [p, K, n, D] twice, for `rows`.

        Args:
            owners: which prompt [b] each of the rows has.
        """
        start = self.used - keys.shape[2]
        for held, new in zip(self._held(layer), (keys, values), strict=True):
            held[rows, :, start : self.used] = new if len(owners) == len(new) else new[owners]

    def open_column(self) -> None:
        """Make place for one more token of every row."""
        if self.used == self._capacity[1]:
            self._move(self.rows, 0)
        self.used += 1
        self._mask_column()

    def append(
        self, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write the newest token's [B, K, D] twice; return all [B * K, C, D] twice, and a mask.

        The mask [B, C] is added to scores; there is none where every row fills every column. C is
        what is used in float32; all that there is in other types, whose products copy parts.
        """
        held = self._held(layer)
        for place, new in zip(held, (keys, values), strict=True):
            place[: self.rows, :, self.used - 1] = new
        width = self.used if self._dtype == torch.float32 else self._capacity[1]
        shape = (self.rows * self._heads, self._capacity[1], self._size)
        views = [place[: self.rows].view(shape)[:, :width] for place in held]
        mask = None if self._mask is None else self._mask[:, :width]
        return views[0], views[1], mask

    def keep(self, live: Tensor) -> Tensor:
        """Drop the rows that are not live [B]; return the row [b] that each place now has."""
        count = int(live.sum())
        order = torch.arange(count, device=live.device)
        holes = (~live[:count]).nonzero().flatten()
        movers = count + live[count:].nonzero().flatten()
        order[holes] = movers
        if len(holes):
            for held in cast(list[tuple[Tensor, Tensor]], self._layers):
                for place in held:
                    place[holes] = place[movers]
        self._start, self.rows = self._start[order], count
        self._changed()
        return order

    def _held(self, layer: int) -> tuple[Tensor, Tensor]:
        return cast(list[tuple[Tensor, Tensor]], self._layers)[layer]

    def _move(self, rows: int, most: int) -> None:
        """Ask for memory for `rows` whose longest new one has `most` tokens; drop old columns."""
        first = int(self._start.min()) if self.rows else 0
        kept = self.used - first
        used = max(kept, most)
        self._capacity = (rows, used + COLUMNS)
        shape = (rows, self._heads, used + COLUMNS, self._size)
        for number, held in enumerate(self._layers):
            made = [
                # What is masked has no weight, but 0 * NaN would be NaN.
                torch.zeros(shape, dtype=self._dtype, device=self._start.device)
                for _ in range(2)
            ]
            for new, old in zip(made, held or (), strict=False):
                new[: self.rows, :, used - kept : used] = old[: self.rows, :, first : self.used]
            self._layers[number] = (made[0], made[1])
        self._start = self._start + (used - self.used)
        self.used = used
        self._changed()

    def _changed(self) -> None:
        """Write the mask anew."""
        gapless = self.rows == 0 or int(self._start.max()) == 0
        if gapless and self._dtype == torch.float32:
            self._mask = None
            return
        columns = torch.arange(self._capacity[1], device=self._start.device)
        seen = (columns >= self._start[:, None]) & (columns < self.used)
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=seen.device)
        self._mask = mask.masked_fill_(~seen, -torch.inf)

    def _mask_column(self) -> None:
        if self._mask is not None:
            self._mask[:, self.used - 1] = 0.0
