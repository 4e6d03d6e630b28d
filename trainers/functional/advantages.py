"""Advantage estimators: what each action earned beyond what was expected.

`gae` asks a critic what to expect; `group_relative` asks the other responses to the same prompt.
`ESTIMATORS` holds them by their name in `ppo.advantage`. A teacher's part is added to any of them.

Shapes: B rows (sequences, or steps of an environment), T actions of a row; E episodes, A the
largest number of actions of one.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainers.config.ppo import PPOConfig
from trainers.functional.trajectories import Trajectories

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


STD_EPSILON = 1e-4
"""Added to a group's standard deviation before the division, as in TRL."""


def group_relative(
    scores: Float[Tensor, " E"],
    groups: Int[Tensor, " E"],
    counted: Bool[Tensor, " E"],
    *,
    leave_one_out: bool,
    scale: bool,
) -> Float[Tensor, " E"]:
    """Compare the score of each episode with those of the same group.

        rloo   A_i = R_i - mean of the other R_j          = n / (n - 1) (R_i - mean R)
        grpo   A_i = R_i - mean R
        scale  A_i / (s + 1e-4),   s^2 = sum (R_j - mean R)^2 / (n - 1)

    Args:
        scores: [E] sum of the rewards of an episode, the KL penalty included.
        groups: [E] equal numbers answer the same prompt.
        counted: [E] False leaves an episode out of its group; its own advantage is 0.
        leave_one_out: the mean is over the others; without a bias, since it does not depend on
            the actions that it is compared with.
        scale: divide by the group's standard deviation.

    Returns:
        advantages [E]; 0 in a group of one.

    Source: RLOO: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free", and
    Ahmadian et al. 2024, arXiv:2402.14740; GRPO: Shao et al. 2024, arXiv:2402.03300; without the
    division: Liu et al. 2025, arXiv:2503.20783.
    """
    weights = counted.double()
    kept = torch.where(counted, scores.double(), 0.0)
    group = torch.searchsorted(groups.sort().values, groups)  # the place of its first member

    def summed(figures: Tensor) -> Tensor:
        return torch.zeros_like(figures).index_add(0, group, figures)[group]

    count, total = summed(weights), summed(kept)
    others = (count - 1).clamp(min=1)
    centered = kept - total / count.clamp(min=1)
    advantages = kept - (total - kept) / others if leave_one_out else centered
    if scale:
        std = (summed(weights * centered.square()) / others).sqrt()
        advantages = advantages / (std + STD_EPSILON)
    return torch.where(counted & (count > 1), advantages, 0.0).to(scores.dtype)


def _by_gae(trajectories: Trajectories, config: PPOConfig) -> tuple[Tensor, Tensor]:
    values, next_values = trajectories.values, trajectories.next_values
    assert values is not None, "gae needs a critic"
    assert next_values is not None, "gae needs a critic"
    return gae(
        trajectories.rewards,
        values,
        next_values,
        trajectories.terminated,
        trajectories.boundary,
        config.gamma,
        config.gae_lambda,
    )


def _by_group(trajectories: Trajectories, config: PPOConfig) -> tuple[Tensor, None]:
    """Give every action of an episode the advantage of the whole episode."""
    advantages = group_relative(
        trajectories.rewards.sum(1),
        trajectories.groups,
        trajectories.mask.any(1),
        leave_one_out=config.advantage == "rloo",
        scale=config.scales_advantages,
    )
    return advantages[:, None].expand_as(trajectories.rewards), None


def _unrewarded(trajectories: Trajectories, config: PPOConfig) -> tuple[Tensor, None]:
    """Read no reward: a teacher's part alone is left."""
    del config
    return torch.zeros_like(trajectories.rewards), None


def taught(
    advantages: Float[Tensor, "B T"],
    teacher_rewards: Float[Tensor, "B T"] | None,
    teacher_values: Float[Tensor, "B T"] | None,
) -> Float[Tensor, "B T"]:
    """Add what a teacher makes of each action, where there is one.

        A_t + r^T_t - V^T_t

    V^T is the exact mean of r^T over the policy's own distribution, so the term has mean 0 in every
    state and needs no critic; it is that of gamma = 0, and is never whitened.

    Args:
        advantages: [B, T] of the environment's reward.
        teacher_rewards: [B, T] r^T, in nats times its weight; None: no teacher.
        teacher_values: [B, T] V^T.
    """
    if teacher_rewards is None or teacher_values is None:
        return advantages
    return advantages + teacher_rewards - teacher_values


ESTIMATORS: Mapping[str, Callable[[Trajectories, PPOConfig], tuple[Tensor, Tensor | None]]] = {
    "gae": _by_gae,
    "rloo": _by_group,
    "grpo": _by_group,
    "teacher": _unrewarded,
}
"""By name in `ppo.advantage`: from trajectories to advantages [E, A] and the targets of the
critic [E, A], None where there is no critic."""
