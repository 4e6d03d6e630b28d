"""Tensors of an environment cross to the trainer's process as plain data."""

import numpy as np
import torch

from llmgym.processes.plain import plain


def test_tensors_arrive_as_arrays():
    crossed = plain({"a": torch.ones(2, requires_grad=True), "b": np.array([object, 1])})
    assert crossed["a"].tolist() == [1.0, 1.0]
    assert type(crossed["a"]) is np.ndarray
    assert crossed["b"][1] == 1
