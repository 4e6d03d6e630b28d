"""The keys and values of a batch that is being written.

B rows, H heads, S tokens so far, D head size.
"""

from typing import Any, cast, final

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

ROOM = 64
"""Tokens that memory is asked for at a time."""


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
