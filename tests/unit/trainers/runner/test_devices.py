"""Where models are placed that do not train, and what they are cast to."""

import torch

from tests import tiny
from trainers.backends.zero.setup import Zero
from trainers.config import BackendConfig, Config
from trainers.config.backend import ZeroConfig
from trainers.models.causal_lm import CausalPolicy
from trainers.runner.assemble import Devices, writer_of


def devices(stage):
    config = Config(backend=BackendConfig(name="deepspeed", zero=ZeroConfig(stage=stage)))
    zero = Zero(config=config, is_bf16=True, more={}, on_gpu=False)
    return Devices(device=tiny.CPU, dtype=torch.bfloat16, zero=zero)


def test_a_reference_in_bfloat16_keeps_the_angles_of_positions_in_float32():
    policy = CausalPolicy(tiny.llama(), temperature=1.0, chunk=512)
    angles = {name: value.clone() for name, value in policy.named_buffers()}
    placed = devices(2).frozen(policy)
    assert {one.dtype for one in placed.parameters()} == {torch.bfloat16}
    assert angles
    assert all(torch.equal(value, angles[name]) for name, value in placed.named_buffers())


def test_a_copy_that_writes_has_no_weights_before_they_come_and_exact_angles():
    policy = CausalPolicy(tiny.llama(), temperature=1.0, chunk=512)
    writer = writer_of(policy, devices(3))
    assert writer.weights == "copied"
    assert not sum(one.numel() for one in writer.policy.parameters())
    angles = dict(policy.named_buffers())
    assert all(torch.equal(value, angles[name]) for name, value in writer.policy.named_buffers())
    assert sum(one.numel() for one in policy.parameters()), "the policy keeps its own"
