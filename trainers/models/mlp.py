"""Actor and critic for numeric observations: small tanh networks.

Continuous actions are unbounded here; the collector clips what it hands to the environment. Shapes:
B rows, T steps, A dimensions of an action, K actions, D features.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, final

import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.batch import ControlInputs, PolicyOutput
from trainers.errors import ConfigError
from trainers.functional.logprobs import EntropyMode
from trainers.models.heads import Head, action_head, orthogonal


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


Act = Callable[..., Tensor]
"""Draws actions for obs [B, ...] at uniforms [B, A]; a mask and a prior [B, K] may follow."""


def acting(trunk: nn.Sequential, head: Head) -> Act:
    """Return a function that draws actions for obs [B, ...] at uniforms [B, A] in [0, 1).

    For a few rows the calls of modules cost more than their products, so it has only those. It
    reads the weights where they are: it follows an optimizer, but not one that replaces them.
    """
    linear = [module for module in (*trunk, head.layer) if isinstance(module, nn.Linear)]
    *hidden, last = [(layer.weight.detach(), layer.bias.detach()) for layer in linear]

    @torch.no_grad()
    def act(
        obs: Tensor, uniforms: Tensor, mask: Tensor | None = None, prior: Tensor | None = None
    ) -> Tensor:
        features = flattened(obs, 1)
        for weight, bias in hidden:
            features = torch.tanh(F.linear(features, weight, bias))
        return head.draw(head.restrict(F.linear(features, *last), mask, prior), uniforms)

    return act


def figures_of(head: Head, features: Tensor, inputs: ControlInputs) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies [N] of the actions after features [N, D], N = B * T.

    Masks and priors are those that the actions were drawn under.
    """
    limits = (inputs.action_mask, inputs.action_prior)
    rows = [None if limit is None else limit.flatten(0, 1) for limit in limits]
    outputs = head.restrict(head.layer(features), *rows)
    return head.logprobs(outputs, inputs.actions.flatten(0, 1))


def likeliest(
    trunk: nn.Sequential, head: Head, obs: Tensor, mask: Tensor | None, prior: Tensor | None
) -> Tensor:
    """Return the most likely actions for obs [B, ...] under a mask and a prior [B, K]."""
    return head.mode(head.restrict(head.layer(trunk(flattened(obs, 1))), mask, prior))


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
        figures = figures_of(self.head, features, inputs)
        return masked_output(figures, response_mask, entropy)

    def acting(self) -> Act:
        """Return a function that draws actions for obs [B, ...] at uniforms [B, A] in [0, 1)."""
        return acting(self.trunk, self.head)

    @torch.no_grad()
    def mode(self, obs: Tensor, mask: Tensor | None = None, prior: Tensor | None = None) -> Tensor:
        """Return the most likely actions for `obs` [B, ...] under a mask and a prior [B, K]."""
        return likeliest(self.trunk, self.head, obs, mask, prior)


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
        figures = figures_of(self.head, features, inputs)
        values = self.value(features).reshape(response_mask.shape).float()
        return masked_output(figures, response_mask, entropy)._replace(values=values)

    def acting(self) -> Act:
        """Return a function that draws actions for obs [B, ...] at uniforms [B, A] in [0, 1)."""
        return acting(self.trunk, self.head)

    @torch.no_grad()
    def mode(self, obs: Tensor, mask: Tensor | None = None, prior: Tensor | None = None) -> Tensor:
        """Return the most likely actions for `obs` [B, ...] under a mask and a prior [B, K]."""
        return likeliest(self.trunk, self.head, obs, mask, prior)


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


def load_mlp(folder: Path) -> PolicyMLP | SharedMLP:
    """Return the policy that `export_mlp` of `trainers/export/folders.py` wrote."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    actions = config["actions"]
    box = Box(-torch.inf, torch.inf, tuple(actions.get("shape", ())))
    space = Discrete(actions["n"], start=actions["start"]) if "n" in actions else box
    kinds: Mapping[str, type[PolicyMLP | SharedMLP]] = {
        "PolicyMLP": PolicyMLP,
        "SharedMLP": SharedMLP,
    }
    policy = kinds[config["kind"]](
        config["obs_size"], space, hidden_sizes=config["hidden_sizes"], rng=torch.Generator()
    )
    policy.load_state_dict(load_file(folder / "model.safetensors"))
    return policy
