"""Advantage estimators: what each action earned beyond what was expected.

Shapes: B rows (sequences, or steps of an environment), T actions of a row.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

GAE_CHUNK = 64
"""Actions solved by one matrix product: B * 64 * 64 floats, and T / 64 steps of Python."""


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    terminated: Bool[Tensor, "B T"],
    boundary: Bool[Tensor, "B T"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Estimate advantages backwards over time.

        delta_t = r_t + gamma * (1 - terminated_t) * next_values_t - values_t
        A_t     = delta_t + gamma * gae_lambda * (1 - boundary_t) * A_{t+1}

    The last action of a row ends it, whatever `boundary` says. Solved in chunks: within one,
    A = D delta, where D[t, s] = (gamma * gae_lambda)^(s - t) if no boundary lies in [t, s).

    Args:
        rewards: [B, T] reward after each action, in reward units.
        values: [B, T] critic at the state before each action.
        next_values: [B, T] critic at the state after it; not read where terminated.
        terminated: [B, T] True where the task ended; a truncated action is not terminated and
            still bootstraps.
        boundary: [B, T] True at the last action of an episode, however it ended.
        gamma: discount of an action.
        gae_lambda: 0 is one-step TD, 1 is Monte Carlo.

    Returns:
        advantages [B, T] and returns [B, T] = advantages + values.

    Raises:
        ValueError: shapes differ.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    named = {"values": values, "next_values": next_values}
    for name, tensor in {**named, "terminated": terminated, "boundary": boundary}.items():
        if tensor.shape != rewards.shape:
            raise ValueError(f"{name} must be {tuple(rewards.shape)} like rewards, "
                             f"got {tuple(tensor.shape)}")  # fmt: skip
    bootstrap = torch.where(terminated, torch.zeros_like(next_values), next_values)
    delta = rewards + gamma * bootstrap - values
    decay = delta.new_tensor(gamma * gae_lambda)
    episode = boundary.cumsum(1) - boundary.long()  # boundaries before t: a new id after each
    advantages = torch.empty_like(delta)
    carry = delta.new_zeros(delta.shape[0])  # A at the first action after the chunk
    for begin in reversed(range(0, delta.shape[1], GAE_CHUNK)):
        part = slice(begin, begin + GAE_CHUNK)
        ids = episode[:, part]
        steps = torch.arange(ids.shape[1], device=ids.device)
        distance = steps.unsqueeze(0) - steps.unsqueeze(1)  # [t, s] = s - t
        powers = torch.pow(decay, distance.clamp(min=0)) * (distance >= 0)
        reach = powers * (ids.unsqueeze(2) == ids.unsqueeze(1))
        inside = torch.einsum("bts,bs->bt", reach, delta[:, part])
        open_end = (ids == ids[:, -1:]) & ~boundary[:, part][:, -1:]  # t still runs past the chunk
        beyond = torch.pow(decay, steps.flip(0) + 1)
        advantages[:, part] = inside + open_end * beyond * carry.unsqueeze(1)
        carry = advantages[:, begin]
    return advantages, advantages + values
