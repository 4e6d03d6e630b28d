"""What leaves the GPU between phases, on an engine that only notes what it is asked."""

import pytest

from trainers.backends.zero.engine import DeepSpeedEngine
from trainers.backends.zero.json import can_leave

pytestmark = pytest.mark.deepspeed


class Noted:
    """Stands for DeepSpeed's engine, whose states move on GPUs alone."""

    def __init__(self):
        self.asked = []

    def offload_states(self, include):
        self.asked.append([kind.value for kind in include])

    def reload_states(self):
        self.asked.append("back")


@pytest.mark.parametrize(
    ("can", "asked"), [(True, [["hp_params", "optim_states"], "back"]), (False, [])]
)
def test_masters_and_moments_leave_and_weights_stay(can, asked):
    engine = object.__new__(DeepSpeedEngine)
    engine._engine, engine._can_offload, engine._steps = Noted(), can, 0
    engine.offload()
    engine.reload()
    assert engine._engine.asked == asked


@pytest.mark.parametrize(("stage", "can"), [(2, True), (3, False)])
def test_stage_three_moves_the_moments_of_deepspeeds_own_adam_alone(stage, can):
    adam = {"params": {"torch_adam": True}}
    assert can_leave({"zero_optimization": {"stage": stage}, "optimizer": adam}) is can
