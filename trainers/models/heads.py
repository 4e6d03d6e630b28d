"""Distributions of actions on top of features: a choice of K actions, or independent normals.

Sampling is the inverse of the cumulative distribution at given uniforms: a counter, not a
generator. An environment may allow some of K actions only, and may have a prior of which is good:
both are applied to the logits in the same way where actions are drawn and where they are learned
from. Shapes: B rows, A dimensions of an action, K actions, D features.
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from trainers.errors import ConfigError

TINY = 2.0**-53  # uniforms stay inside (0, 1), where the inverse normal is finite


def restricted(logits: Tensor, mask: Tensor | None, prior: Tensor | None) -> Tensor:
    """Return logits [..., K] in float32, with the prior added, of allowed actions alone.

    Others get the least float, not minus infinity: their probability is exactly 0, and no product
    with it is NaN.

    Args:
        logits: [..., K].
        mask: [..., K] True where an action is allowed; None: everywhere.
        prior: [..., K] added to the logits, or None.
    """
    shifted = logits.float() if prior is None else logits.float() + prior
    if mask is None:
        return shifted
    return shifted.masked_fill(~mask, torch.finfo(shifted.dtype).min)


class Head(ABC, nn.Module):
    """A distribution of actions given features."""

    num_uniforms: int
    """A: uniforms that one action is made of."""

    @abstractmethod
    def logprobs(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies [...] of `actions`.

        Args:
            outputs: [..., D] of `layer`, restricted where actions are.
            actions: [...] or [..., A].
        """

    @property
    @abstractmethod
    def layer(self) -> nn.Linear:
        """From features to what the distribution is made of."""

    @abstractmethod
    def restrict(self, outputs: Tensor, mask: Tensor | None, prior: Tensor | None) -> Tensor:
        """Return what `layer` returned [..., K] under a mask and a prior [..., K]."""

    @abstractmethod
    def draw(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Draw actions at `uniforms` [B, A] in [0, 1), given what `layer` returned, [B, ...]."""

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely actions, given what `layer` returned, [B, ...]."""

    @abstractmethod
    def space(self) -> Space:
        """Return the space of its actions; a Gaussian's has no bounds."""


def orthogonal(inputs: int, outputs: int, *, gain: float, rng: torch.Generator) -> nn.Linear:
    """Return a linear layer with orthogonal weights and zero bias.

    Source: Saxe et al. 2014, arXiv:1312.6120; gains as in common PPO implementations.
    """
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.orthogonal_(layer.weight, gain, generator=rng)
    nn.init.zeros_(layer.bias)
    return layer


@final
class CategoricalHead(Head):
    """One of `count` actions, the first of which is called `start`."""

    num_uniforms = 1

    def __init__(self, width: int, space: Discrete, rng: torch.Generator) -> None:
        super().__init__()
        self.start = int(space.start)
        self.logits = orthogonal(width, int(space.n), gain=0.01, rng=rng)

    def logprobs(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies [...] of `actions` [...], of logits [..., K]."""
        logp = outputs.float().log_softmax(-1)
        index = (actions.long() - self.start).unsqueeze(-1)
        return logp.gather(-1, index).squeeze(-1), -(logp.exp() * logp).sum(-1)

    @property
    def layer(self) -> nn.Linear:
        """From features to logits."""
        return self.logits

    def restrict(self, outputs: Tensor, mask: Tensor | None, prior: Tensor | None) -> Tensor:
        """Return logits [..., K] under a mask and a prior [..., K]."""
        return restricted(outputs, mask, prior)

    def draw(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Return the first action whose cumulative probability exceeds the uniform, [B]."""
        cumulative = outputs.double().softmax(-1).cumsum(-1)
        target = uniforms.double() * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, target, right=True)[:, 0]
        return index.clamp(max=cumulative.shape[-1] - 1) + self.start

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely actions [B] of logits [B, K]."""
        return outputs.argmax(-1) + self.start

    def space(self) -> Discrete:
        """Return the actions' space."""
        return Discrete(self.logits.out_features, start=self.start)


@final
class GaussianHead(Head):
    """Independent normals, with a standard deviation that does not depend on the observation."""

    def __init__(self, width: int, space: Box, rng: torch.Generator) -> None:
        super().__init__()
        self.shape = space.shape
        self.num_uniforms = math.prod(space.shape)
        self.mean = orthogonal(width, self.num_uniforms, gain=0.01, rng=rng)
        self.log_std = nn.Parameter(torch.zeros(self.num_uniforms))

    def logprobs(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities and entropies [...] of `actions` [..., A], of means [..., A]."""
        mean = outputs.float()
        noise = (actions.float().reshape(mean.shape) - mean) * (-self.log_std).exp()
        constant = self.log_std + 0.5 * math.log(2 * math.pi)
        entropy = (constant + 0.5).sum().expand(mean.shape[:-1])
        return -(0.5 * noise.square() + constant).sum(-1), entropy

    @property
    def layer(self) -> nn.Linear:
        """From features to means."""
        return self.mean

    def restrict(self, outputs: Tensor, mask: Tensor | None, prior: Tensor | None) -> Tensor:
        """Return the means [..., A]: a normal has no list of actions, [..., K], to choose from."""
        assert mask is None, "only Discrete actions are masked"
        assert prior is None, "only Discrete actions have a prior"
        return outputs

    def draw(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Return mean + std * inverse normal of the uniforms, [B, A...] float32."""
        noise = torch.special.ndtri(uniforms.double().clamp(TINY, 1 - TINY))
        actions = outputs.double() + self.log_std.double().exp() * noise
        return actions.float().reshape(-1, *self.shape)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the means [B, A] as actions [B, A...]."""
        return outputs.float().reshape(-1, *self.shape)

    def space(self) -> Box:
        """Return the actions' space, without bounds."""
        return Box(-math.inf, math.inf, self.shape)


def action_head(width: int, space: Space, rng: torch.Generator) -> Head:
    """Return the distribution for a space of actions.

    Raises:
        ConfigError: the space is neither Discrete nor Box.
    """
    if isinstance(space, Discrete):
        return CategoricalHead(width, space, rng)
    if isinstance(space, Box):
        return GaussianHead(width, space, rng)
    raise ConfigError(
        f"run.kind control acts in Discrete and Box spaces, and this environment's actions are "
        f"{space}. Flatten them with a Gymnasium wrapper."
    )
