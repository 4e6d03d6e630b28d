"""Rows in groups that fit a budget of tokens."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from trainers.batch import ControlInputs, Inputs, RowIndex


def padded_groups(sizes: Tensor, budget: int) -> list[Tensor]:
    """Group rows, longest first, so that rows times common width stays within `budget` tokens.

    Args:
        sizes: [B, 2] prompt and response width of each row.
        budget: tokens of a group, padding included; a longer row is a group of its own.

    Returns:
        Row numbers of each group; every row is in exactly one.
    """
    longest = torch.argsort(sizes.sum(1), descending=True, stable=True)
    order, widths = _numbers(longest), _pairs(sizes)
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


def row_groups(inputs: Inputs, budget: int, *, packed_up_to: float) -> Sequence[RowIndex]:
    """Group rows by what the models compute: text without padding where they read it packed.

    Steps of environments are of one width and are not sorted.

    Args:
        inputs: B rows.
        budget: tokens of a group; a longer row is a group of its own.
        packed_up_to: tokens of the longest row that the models read packed, 0 for none. With a
            longer one all rows count their padding, for its pass computes it.
    """
    if not isinstance(inputs, ControlInputs):
        return text_groups(inputs.sizes, inputs.prompt_numbers, budget, packed_up_to=packed_up_to)
    rows, width = inputs.obs.shape[:2]
    size = max(budget // width, 1)
    return [slice(begin, begin + size) for begin in range(0, rows, size)]


def text_groups(
    sizes: Tensor, prompts: Tensor, budget: int, *, packed_up_to: float
) -> list[Tensor]:
    """Group rows of text packed, or padded where one is longer than `packed_up_to` tokens.

    Args:
        sizes: [B, 2] prompt and response tokens of each row.
        prompts: [B] a number for each prompt.
        budget: tokens of a group; a longer row is a group of its own.
        packed_up_to: as of `row_groups`.
    """
    if len(sizes) and int(sizes.sum(1).max()) <= packed_up_to:
        return packed_groups(sizes, prompts, budget)
    return padded_groups(sizes, budget)


def packed_groups(sizes: Tensor, prompts: Tensor, budget: int) -> list[Tensor]:
    """Group rows, longest first, so that their tokens stay within `budget`; no padding is counted.

    Rows that share a prompt are neighbours, and a group counts it once.

    Args:
        sizes: [B, 2] prompt and response tokens of each row.
        prompts: [B] a number for each prompt.
        budget: tokens of a group; a longer row is a group of its own.

    Returns:
        Row numbers of each group; every row is in exactly one.
    """
    widths, prompt_of = _pairs(sizes), _numbers(prompts)
    longest: dict[int, int] = {}
    for number, width in zip(prompt_of, widths, strict=True):
        longest[number] = max(longest.get(number, 0), sum(width))

    def rank(row: int) -> tuple[int, int, int]:
        return -longest[prompt_of[row]], prompt_of[row], -widths[row][1]

    groups: list[list[int]] = []
    tokens, there = 0, -1
    for row in sorted(range(len(widths)), key=rank):
        prompt, response = widths[row]
        more = response if prompt_of[row] == there else prompt + response
        if groups and tokens + more <= budget:
            groups[-1].append(row)
            tokens += more
        else:
            groups.append([row])
            tokens = prompt + response
        there = prompt_of[row]
    return [torch.tensor(group, device=sizes.device) for group in groups]


def _numbers(values: Tensor) -> list[int]:
    return cast(list[int], values.tolist())  # pyright: ignore[reportUnknownMemberType]


def _pairs(values: Tensor) -> list[list[int]]:
    return cast(list[list[int]], values.tolist())  # pyright: ignore[reportUnknownMemberType]
