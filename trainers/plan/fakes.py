"""What torch does not know of fake tensors: products of experts; and what it says of a failure.

torch computes the grouped products of a mixture of experts in every type and makes fake ones in
bfloat16 alone; its count of operations has none of them.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedOperatorException,
)

GROUPED = cast(Any, torch.ops.aten)._grouped_mm

DEPENDING = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
FAILS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model's own code and torch raise of a pass that fails without values."""


def failure_of(name: str, error: Exception) -> str:
    """Return in words why a pass of the model `name` could not be counted."""
    if isinstance(error, DEPENDING):
        return f"{name} does what depends on values ({type(error).__name__})"
    first = str(error).strip().partition("\n")[0]
    return f"{name} fails where tensors hold no values ({type(error).__name__}: {first})"


def grouped_flops(left: torch.Size, right: torch.Size, *_: object, **__: object) -> int:
    """Return the operations of a grouped product: every row, or column, meets one expert.

    Args:
        left: shape [S, K], or [G, M, K] where the columns of `right` are in groups.
        right: shape [G, K, N] of the experts; or [K, N].
    """
    return 2 * left[-2] * left[-1] * right[-1]


def grouped_result(left: Tensor, right: Tensor, offsets: Tensor | None) -> Tensor:
    """Return an empty tensor as a grouped product makes it: [M, N], or [G, M, N] of G groups."""
    rows, columns = left.shape[-2], right.shape[-1]
    if left.dim() != right.dim():
        return left.new_empty(rows, columns)
    groups = left.shape[0] if offsets is None else offsets.shape[0]
    return left.new_empty(groups, rows, columns)


def rehearsed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Run one operation; a grouped product of fake tensors is made and not computed."""
    if func is not GROUPED.default or not isinstance(args[0], FakeTensor):
        return func(*args, **kwargs)
    left, right, *others = args
    return grouped_result(left, right, others[0] if others else kwargs.get("offs"))
