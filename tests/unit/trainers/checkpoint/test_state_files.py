"""State on disk: nothing lost, nothing executed."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainers.checkpoint.state_files import (
    random_state,
    read_state,
    restore_random_state,
    seed_random_state,
    write_state,
)

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.text(max_size=2))
NESTED = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS | st.just("$"), inner, max_size=3)
    ),
    max_leaves=12,
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)


def round_trip(state, folder):
    write_state(state, folder, "part")
    return read_state(folder, "part")


def same(one, other):
    """Equal in type and value, with nan equal to nan and -0.0 unlike 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return one == other


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=4), NESTED, max_size=4))
def test_plain_values_come_back_with_their_types(tmp_path, state):
    assert same(round_trip(state, tmp_path), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    tensor = torch.randn(3, 4).to(dtype)
    state = {"a": tensor, "deep": [{0: tensor[0]}, (tensor.t(),)], "empty": tensor[:0]}
    found = round_trip(state, tmp_path)
    assert found["a"].dtype == dtype
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["deep"][0][0], tensor[0])
    assert torch.equal(found["deep"][1][0], tensor.t())
    assert found["empty"].shape == (0, 4)


def test_nan_and_minus_zero_keep_their_bits(tmp_path):
    tensor = torch.tensor([math.nan, -0.0, math.inf, 1e-45])
    found = round_trip({"x": tensor}, tmp_path)["x"]
    assert torch.equal(found.view(torch.int32), tensor.view(torch.int32))


def test_one_tensor_under_two_names_and_a_view_of_it_are_saved(tmp_path):
    tensor = torch.arange(6.0)
    found = round_trip(
        {"a": tensor, "b": tensor, "c": tensor[2:], "d": tensor.view(2, 3)}, tmp_path
    )
    assert torch.equal(found["b"], tensor)
    assert torch.equal(found["c"], tensor[2:])
    assert torch.equal(found["d"], tensor.view(2, 3))


def test_names_that_look_like_one_path_do_not_collide(tmp_path):
    found = round_trip({"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1)}, tmp_path)
    assert (found["a"]["b"].item(), found["a/b"].item()) == (1.0, 0.0)


def test_arrays_come_back_as_arrays(tmp_path):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    found = round_trip({"x": array}, tmp_path)["x"]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", np.float64(1.0), 1j])
def test_what_cannot_be_written_without_loss_is_refused_by_its_place(tmp_path, value):
    with pytest.raises(TypeError, match=r"part/a/1 is a "):
        write_state({"a": [0, value]}, tmp_path, "part")


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_random_state_survives_the_disk_and_repeats_the_draws(tmp_path):
    draws()
    state = random_state()
    expected = [draws() for _ in range(3)]
    restore_random_state(round_trip(state, tmp_path))
    assert [draws() for _ in range(3)] == expected


def seeded_draws(*where):
    seed_random_state(*where)
    return draws()


def test_seeds_and_ranks_have_draws_of_their_own_and_repeat_them():
    assert seeded_draws(0, 1) == seeded_draws(0, 1)
    drawn = [seeded_draws(*where) for where in ((0, 0), (0, 1), (1, 0))]
    assert all(len(set(column)) == 3 for column in zip(*drawn, strict=True))
