"""The actions of each episode side by side: what an advantage estimator reads.

Shapes: B rows (sequences, or steps of an environment), T actions of a row, E episodes, A the
largest number of actions of an episode, N actions in all.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainers.batch import Rollout


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ActionOrder:
    """Where the actions of a rollout lie once those of each of E episodes stand side by side.

        episode 0, row 0   a b . . c        episode 0   a b c d e
        episode 0, row 1   . d e . .   <->  episode 1   f
        episode 1, row 2   f . . . .

    Attributes:
        rows: [N] row of each action.
        columns: [N] column of each action.
        episodes: [N] episode of each action, counted from 0.
        places: [N] how many actions of the episode come before it.
        shape: E and the most actions of an episode.
    """

    rows: Int[Tensor, " N"]
    columns: Int[Tensor, " N"]
    episodes: Int[Tensor, " N"]
    places: Int[Tensor, " N"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, rollout: Rollout) -> "ActionOrder":
        """Order the actions that `response_mask` shows; nothing else has a place."""
        index = rollout.index
        owner = torch.diff(index, prepend=index[:1]).ne(0).cumsum(0)
        rows, columns = rollout.response_mask.nonzero().unbind(1)
        episodes = owner[rows]
        counts = episodes.bincount(minlength=1)
        before = (counts.cumsum(0) - counts)[episodes]
        return cls(
            rows=rows,
            columns=columns,
            episodes=episodes,
            places=torch.arange(len(rows), device=rows.device) - before,
            shape=(len(counts), int(counts.max())),
        )

    def compact(self, tensor: Tensor, filler: int) -> Tensor:
        """Return [E, A] the figures of the actions in `tensor` [B, T], then `filler`."""
        compacted = tensor.new_full(self.shape, filler)
        compacted[self.episodes, self.places] = tensor[self.rows, self.columns]
        return compacted

    def spread(self, compacted: Tensor, shape: torch.Size) -> Tensor:
        """Return [B, T] the figures of `compacted` [E, A] where their actions lie, 0 elsewhere."""
        tensor = compacted.new_zeros(shape)
        tensor[self.rows, self.columns] = compacted[self.episodes, self.places]
        return tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """Episodes as an advantage estimator reads them.

    What the environment said between two turns has no place here, so it neither decays nor carries.

    Attributes:
        rewards: [E, A] after each action, then 0.
        values: [E, A] critic at the state before each action, or None without a critic.
        next_values: [E, A] critic at the state after it, or None.
        terminated: [E, A] True where the task ended, and behind the last action.
        boundary: [E, A] True at the last action of an episode, and behind it.
        mask: [E, A] True on actions. An episode without one has no part in any mean.
        groups: [E] which prompt, or which start, an episode answers.
    """

    rewards: Float[Tensor, "E A"]
    values: Float[Tensor, "E A"] | None
    next_values: Float[Tensor, "E A"] | None
    terminated: Bool[Tensor, "E A"]
    boundary: Bool[Tensor, "E A"]
    mask: Bool[Tensor, "E A"]
    groups: Int[Tensor, " E"]

    @classmethod
    def of(cls, rollout: Rollout, order: ActionOrder, group_size: int) -> "Trajectories":
        """Take the actions of a rollout; `group_size` neighbouring sequences share a prompt."""
        values, after = (
            None if tensor is None else order.compact(tensor, 0)
            for tensor in (rollout.values, rollout.next_values)
        )
        first = torch.diff(rollout.index, prepend=rollout.index[:1] - 1).ne(0)
        return cls(
            rewards=order.compact(rollout.rewards, 0),
            values=values,
            next_values=after,
            terminated=order.compact(rollout.terminated, 1),
            boundary=order.compact(rollout.boundary, 1),
            mask=order.compact(rollout.response_mask, 0),
            groups=rollout.index[first][: order.shape[0]] // group_size,
        )
