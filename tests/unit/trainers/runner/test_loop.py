"""What the outer loop of PPO does with a disk that is full."""

from trainers.errors import CheckpointError
from trainers.runner import loop


class Full:
    """A training whose policy cannot be written."""

    def __init__(self):
        self.asked = []

    def export(self, name):
        """Note what was asked for; fail as one rank alone may."""
        self.asked.append(name)
        if name == "model":
            raise CheckpointError("cannot write model: the disk is full")


def test_a_model_that_cannot_be_written_keeps_the_ranks_in_step():
    training = Full()
    assert loop._written(training, ["model", "critic"]) == "cannot write model: the disk is full"
    assert training.asked == ["model", "critic"]  # others gather the critic: so does this rank
