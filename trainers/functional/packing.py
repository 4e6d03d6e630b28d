"""RowIndex in groups that fit a budget of tokens."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from trainers.batch import ControlInputs, Inputs, RowIndex


def packed(sizes: Tensor, budget: int) -> list[Tensor]:
    """Group rows, longest first, so that rows times common width stays within `budget` tokens.

    Args:
        sizes: [B, 2] prompt and response width of each row.
        budget: tokens of a group, padding included; a longer row is a group of its own.

    Returns:
        Row numbers of each group; every row is in exactly one.
    """
    longest = torch.argsort(sizes.sum(1), descending=True, stable=True)
    order = cast(list[int], longest.tolist())  # pyright: ignore[reportUnknownMemberType]
    widths = cast(list[list[int]], sizes.tolist())  # pyright: ignore[reportUnknownMemberType]
    groups: list[list[int]] = []
    prompt = response = 0
    for row in order:
        wide = (max(prompt, widths[row][0]), max(response, widths[row][1]))
        if groups and (len(groups[-1]) + 1) * sum(wide) <= budget:
            groups[-1].append(row)
            prompt, response = wide
        else:
            groups.append([row])
            prompt, response = widths[row]
    return [torch.tensor(group, device=sizes.device) for group in groups]


def row_groups(inputs: Inputs, budget: int) -> Sequence[RowIndex]:
    """Group rows as `packed` does; steps of environments, of one width, without sorting them."""
    if not isinstance(inputs, ControlInputs):
        return packed(inputs.sizes, budget)
    rows, width = inputs.obs.shape[:2]
    size = max(budget // width, 1)
    return [slice(begin, begin + size) for begin in range(0, rows, size)]
