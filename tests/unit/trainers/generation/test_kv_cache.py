"""The generator's cache holds what transformers' own holds, whatever its rows and lengths do."""

import torch
from transformers import CONFIG_MAPPING, DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from trainers.generation.kv_cache import ROOM, RoomyLayer, keep_rows, roomy_cache


def states(rows, tokens):
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 4)


def test_it_equals_the_growing_cache_through_appends_and_dropped_rows():
    config = LlamaConfig(num_hidden_layers=1)
    ours, theirs = roomy_cache(config), DynamicCache(config=config)
    for step in range(3 * ROOM):
        rows, tokens = (5 if step < ROOM else 3), (7 if step == 0 else 1)
        given = states(rows, tokens)
        for got, expected in zip(ours.update(*given, 0), theirs.update(*given, 0), strict=True):
            assert torch.equal(got, expected)
        assert ours.get_seq_length() == theirs.get_seq_length() == 7 + step
        if step == ROOM - 1:
            for cache in (ours, theirs):
                cache.batch_select_indices(torch.tensor([4, 0, 2]))


def test_a_token_is_written_into_memory_that_is_there():
    layer = RoomyLayer()
    first, _ = layer.update(*states(2, 3))
    second, _ = layer.update(*states(2, 1))
    assert second.data_ptr() == first.data_ptr()


def test_under_autocast_it_keeps_what_attention_reads():
    with torch.autocast("cpu", torch.bfloat16):
        keys, values = RoomyLayer().update(*states(2, 3))
    assert keys.dtype == values.dtype == torch.bfloat16


def test_a_sliding_window_keeps_its_own_layer():
    cache = roomy_cache(MistralConfig(num_hidden_layers=2, sliding_window=8))
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer] * 2


def test_rows_leave_states_and_a_hybrids_keys_alike():
    config = CONFIG_MAPPING["falcon_h1"](num_hidden_layers=1)
    cache = roomy_cache(config)
    keys, values = states(4, 3)
    cache.update(keys, values, 0)
    conv, recurrent = torch.randn(4, 6, 2), torch.randn(4, 3, 5)
    cache.update_conv_state(conv, 0)
    cache.update_recurrent_state(recurrent, 0)
    kept = torch.tensor([3, 1])

    keep_rows(cache, kept)

    layer = cache.layers[0]
    assert torch.equal(layer.keys, keys[kept])
    assert torch.equal(layer.conv_states[0], conv[kept])
    assert torch.equal(layer.recurrent_states[0], recurrent[kept])
