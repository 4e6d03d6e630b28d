"""Actor and critic for numeric observations: small tanh networks.

Sampling is the inverse of the cumulative distribution at given uniforms: a counter, not a
generator. Continuous actions are unbounded here; the collector clips what it hands to the
environment. Shapes: B rows, T steps, A dimensions of an action, D features.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, final

import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.batch import ControlInputs, PolicyOutput
from trainers.errors import ConfigError
from trainers.functional.logprobs import EntropyMode

TINY = 2.0**-53  # uniforms stay inside (0, 1), where the inverse normal is finite


class Head(ABC, nn.Module):
    """A distribution of actions given features."""

    num_uniforms: int
    """A: uniforms that one action is made of."""

    @abstractmethod
    def logprobs(self, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies [...] of `actions` after `features` [..., D]."""

    @property
    @abstractmethod
    def layer(self) -> nn.Linear:
        """From features to what the distribution is made of."""

    @abstractmethod
    def draw(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Draw actions at `uniforms` [B, A] in [0, 1), given what `layer` returned, [B, ...]."""

    @abstractmethod
    def mode(self, features: Tensor) -> Tensor:
        """Return the most likely actions after `features` [B, D]."""

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

    def logprobs(self, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies [...] of `actions` [...]."""
        logp = self.logits(features).float().log_softmax(-1)
        index = (actions.long() - self.start).unsqueeze(-1)
        return logp.gather(-1, index).squeeze(-1), -(logp.exp() * logp).sum(-1)

    @property
    def layer(self) -> nn.Linear:
        """From features to logits."""
        return self.logits

    def draw(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Return the first action whose cumulative probability exceeds the uniform, [B]."""
        cumulative = outputs.double().softmax(-1).cumsum(-1)
        target = uniforms.double() * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, target, right=True)[:, 0]
        return index.clamp(max=cumulative.shape[-1] - 1) + self.start

    def mode(self, features: Tensor) -> Tensor:
        """Return the most likely actions [B]."""
        return self.logits(features).argmax(-1) + self.start

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

    def logprobs(self, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities and entropies [...] of `actions` [..., A]."""
        mean = self.mean(features).float()
        noise = (actions.float().reshape(mean.shape) - mean) * (-self.log_std).exp()
        constant = self.log_std + 0.5 * math.log(2 * math.pi)
        entropy = (constant + 0.5).sum().expand(mean.shape[:-1])
        return -(0.5 * noise.square() + constant).sum(-1), entropy

    @property
    def layer(self) -> nn.Linear:
        """From features to means."""
        return self.mean

    def draw(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Return mean + std * inverse normal of the uniforms, [B, A...] float32."""
        noise = torch.special.ndtri(uniforms.double().clamp(TINY, 1 - TINY))
        actions = outputs.double() + self.log_std.double().exp() * noise
        return actions.float().reshape(-1, *self.shape)

    def mode(self, features: Tensor) -> Tensor:
        """Return the means [B, A...]."""
        return self.mean(features).float().reshape(-1, *self.shape)

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


def tanh_trunk(obs_size: int, hidden_sizes: Sequence[int], rng: torch.Generator) -> nn.Sequential:
    """Return the hidden layers."""
    widths = [obs_size, *hidden_sizes]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [orthogonal(inputs, outputs, gain=math.sqrt(2), rng=rng), nn.Tanh()]
    return nn.Sequential(*layers)


def flattened(obs: Tensor, batch_dims: int) -> Tensor:
    """Return obs [B, ...], or [B, T, ...] of 2 batch dimensions, as float32 rows [N, D]."""
    rows, numbers = obs.shape[:batch_dims], obs.shape[batch_dims:]
    return obs.float().reshape(math.prod(rows), math.prod(numbers))


def acting(trunk: nn.Sequential, head: Head) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that draws actions for obs [B, ...] at uniforms [B, A] in [0, 1).

    For a few rows the calls of modules cost more than their products, so it has only those. It
    reads the weights where they are: it follows an optimizer, but not one that replaces them.
    """
    linear = [module for module in (*trunk, head.layer) if isinstance(module, nn.Linear)]
    *hidden, last = [(layer.weight.detach(), layer.bias.detach()) for layer in linear]

    @torch.no_grad()
    def act(obs: Tensor, uniforms: Tensor) -> Tensor:
        features = flattened(obs, 1)
        for weight, bias in hidden:
            features = torch.tanh(F.linear(features, weight, bias))
        return head.draw(F.linear(features, *last), uniforms)

    return act


def masked_output(
    figures: tuple[Tensor, Tensor], mask: Tensor, entropy: EntropyMode
) -> PolicyOutput:
    """Return logprobs and entropies, [N] of B * T rows, as [B, T]; 0 where `mask` is False."""
    logprobs, entropies = (value.reshape(mask.shape) for value in figures)
    if not mask.all():
        logprobs, entropies = (value.masked_fill(~mask, 0.0) for value in (logprobs, entropies))
    if entropy == "none":
        return PolicyOutput(logprobs, None)
    return PolicyOutput(logprobs, entropies.detach() if entropy == "metric" else entropies)


@final
class PolicyMLP(nn.Module):
    """A policy over numeric observations.

    Args:
        obs_size: numbers of an observation.
        action_space: Discrete (Categorical) or Box (diagonal Gaussian).
        hidden_sizes: widths of the hidden layers.
        rng: draws the initial weights.
    """

    def __init__(
        self,
        obs_size: int,
        action_space: Space,
        *,
        hidden_sizes: Sequence[int],
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.trunk = tanh_trunk(obs_size, hidden_sizes, rng)
        self.head = action_head([obs_size, *hidden_sizes][-1], action_space, rng)

    def forward(
        self, inputs: ControlInputs, response_mask: Tensor, *, entropy: EntropyMode = "none"
    ) -> PolicyOutput:
        """Return log-probabilities [B, T] of the actions, and their entropy where asked."""
        features = self.trunk(flattened(inputs.obs, 2))
        figures = self.head.logprobs(features, inputs.actions.flatten(0, 1))
        return masked_output(figures, response_mask, entropy)

    def acting(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function that draws actions for obs [B, ...] at uniforms [B, A] in [0, 1)."""
        return acting(self.trunk, self.head)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """Return the most likely actions for `obs` [B, ...]."""
        return self.head.mode(self.trunk(flattened(obs, 1)))


@final
class ValueMLP(nn.Module):
    """A critic over numeric observations; arguments as of `PolicyMLP`."""

    def __init__(self, obs_size: int, *, hidden_sizes: Sequence[int], rng: torch.Generator) -> None:
        super().__init__()
        self.trunk = tanh_trunk(obs_size, hidden_sizes, rng)
        self.value = orthogonal([obs_size, *hidden_sizes][-1], 1, gain=1.0, rng=rng)

    def forward(self, inputs: ControlInputs) -> Tensor:
        """Return the values [B, T] of the observations."""
        values = self.value(self.trunk(flattened(inputs.obs, 2)))
        return values.reshape(inputs.obs.shape[:2]).float()


@final
class SharedMLP(nn.Module):
    """Policy and critic on one trunk; arguments as of `PolicyMLP`."""

    def __init__(
        self,
        obs_size: int,
        action_space: Space,
        *,
        hidden_sizes: Sequence[int],
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        width = [obs_size, *hidden_sizes][-1]
        self.trunk = tanh_trunk(obs_size, hidden_sizes, rng)
        self.head = action_head(width, action_space, rng)
        self.value = orthogonal(width, 1, gain=1.0, rng=rng)

    def forward(
        self, inputs: ControlInputs, response_mask: Tensor, *, entropy: EntropyMode = "none"
    ) -> PolicyOutput:
        """Return the actions' figures [B, T] and the values [B, T]."""
        features = self.trunk(flattened(inputs.obs, 2))
        figures = self.head.logprobs(features, inputs.actions.flatten(0, 1))
        values = self.value(features).reshape(response_mask.shape).float()
        return masked_output(figures, response_mask, entropy)._replace(values=values)

    def acting(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function that draws actions for obs [B, ...] at uniforms [B, A] in [0, 1)."""
        return acting(self.trunk, self.head)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """Return the most likely actions for `obs` [B, ...]."""
        return self.head.mode(self.trunk(flattened(obs, 1)))


def build_control(
    obs_space: Space,
    action_space: Space,
    *,
    hidden_sizes: Sequence[int],
    seed: int,
    critic: Literal["separate", "shared", "none"],
) -> tuple[PolicyMLP | SharedMLP, ValueMLP | None]:
    """Return the policy of an environment, and its critic where it is separate.

    Raises:
        ConfigError: observations are not numbers in a Box, or actions neither Discrete nor Box.
    """
    if not isinstance(obs_space, Box):
        raise ConfigError(
            f"run.kind control reads observations from a Box, and this environment's are "
            f"{obs_space}. Flatten them with a Gymnasium wrapper, or choose a model for text."
        )
    rng = torch.Generator().manual_seed(seed)
    size = math.prod(obs_space.shape)
    if critic == "shared":
        return SharedMLP(size, action_space, hidden_sizes=hidden_sizes, rng=rng), None
    policy = PolicyMLP(size, action_space, hidden_sizes=hidden_sizes, rng=rng)
    if critic == "none":
        return policy, None
    return policy, ValueMLP(size, hidden_sizes=hidden_sizes, rng=rng)
