"""What a policy returns. No transformers here: control runs do without."""

from typing import NamedTuple

from torch import Tensor


class PolicyOutput(NamedTuple):
    """The actions' figures; 0 where response_mask is False.

    Attributes:
        logprobs: [B, T] natural log-probabilities of the actions, float32.
        entropy: [B, T] exact entropy in nats of the distribution of each action, or None.
    """

    logprobs: Tensor
    entropy: Tensor | None
