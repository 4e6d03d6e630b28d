"""Rows of tokens that quality is measured on: padded on the right, so that padding is never read.

In a causal model no token sees what comes after it, so rows need no attention mask. Predictions
after a token that ends a text are asked of nobody, and do not count.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from trainers.errors import ConfigError


@final
@dataclass(frozen=True, slots=True)
class TokenRows:
    """N rows of L tokens.

    Attributes:
        tokens: [N, L] ids, any in padding.
        mask: [N, L] True on real tokens.
        counted: [N, L] True where the prediction of the next token is compared.
    """

    tokens: Tensor
    mask: Tensor
    counted: Tensor

    def __len__(self) -> int:
        """Return N."""
        return self.tokens.shape[0]

    def __getitem__(self, rows: slice) -> "TokenRows":
        """Return some rows, without columns that are padding in all of them."""
        mask = self.mask[rows]
        used = mask.any(0).nonzero()
        end = int(used[-1]) + 1 if len(used) else 1
        return TokenRows(self.tokens[rows, :end], mask[:, :end], self.counted[rows, :end])

    def first(self, tokens: int) -> "TokenRows":
        """Return the first rows, as few as have `tokens` counted tokens; all if they have less."""
        sums = self.counted.sum(1).cumsum(0)
        enough = int((sums < tokens).sum()) + 1
        return self[: min(enough, len(self))]


def pad_rows(
    rows: Sequence[Sequence[int]],
    *,
    prompts: Sequence[int] | None = None,
    end_ids: Collection[int] = (),
    pad_id: int = 0,
) -> TokenRows:
    """Return rows of ids as a matrix.

    Args:
        rows: ids; empty rows are left out.
        prompts: tokens of each row before the response, whose predictions alone are then counted.
        end_ids: ids that end a text; what follows them is not counted.
        pad_id: what fills rows.

    Raises:
        ConfigError: there is no token.
    """
    starts = prompts or [1] * len(rows)
    filled = [(list(row), start) for row, start in zip(rows, starts, strict=True) if len(row)]
    if not filled:
        raise ConfigError("there is no token to measure quality on: give text")
    width = max(len(row) for row, _ in filled)
    tokens = torch.tensor([row + [pad_id] * (width - len(row)) for row, _ in filled])
    places = torch.arange(width)
    mask = places < torch.tensor([len(row) for row, _ in filled])[:, None]
    ends = torch.isin(tokens, torch.tensor(sorted(end_ids), dtype=tokens.dtype))
    begun = places >= torch.tensor([start - 1 for _, start in filled])[:, None]
    return TokenRows(tokens, mask, mask & ~ends & begun)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Rows for the three purposes of a search, no row in two of them.

    Attributes:
        calibration: Gram matrices and scores.
        selection: what the search is rewarded by.
        report: read once, at the end.
    """

    calibration: TokenRows
    selection: TokenRows
    report: TokenRows


def check_splits(**ids: Collection[str]) -> None:
    """Refuse splits that share a task.

    Args:
        ids: of the tasks of each split, by the split's name.

    Raises:
        ConfigError: a task is in two splits.
    """
    names = list(ids)
    for number, name in enumerate(names):
        for other in names[number + 1 :]:
            both = sorted(set(ids[name]) & set(ids[other]))
            if both:
                raise ConfigError(
                    f"{len(both)} tasks are in {name} and in {other}, such as {both[0]}: what is "
                    "reported would have been seen. Give every split tasks of its own."
                )
