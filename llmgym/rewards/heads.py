"""What one reads off a classifier's outputs: a head, such as `logit` or `log_odds[positive]`.

| head          | of outputs z [N, K]                   | range     | for                     |
| ------------- | ------------------------------------- | --------- | ----------------------- |
| `logit`       | z                                     | unbounded | scalar reward models    |
| `sigmoid`     | 1 / (1 + exp(-z))                     | 0 to 1    | one label, or several   |
| `softmax[i]`  | p, the probability of i among all K   | 0 to 1    | classes, one of which   |
| `log_odds[i]` | log p / (1 - p)                       | unbounded | the same, not saturated |

`[i]` is the number or the name of a label. One label alone needs no `[i]`.
"""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import numpy as np

from llmgym.errors import RewardError


def _others(logits: np.ndarray, column: int) -> np.ndarray:
    rest = np.delete(logits, column, axis=1)
    top = rest.max(axis=1, keepdims=True)
    return (top + np.log(np.exp(rest - top).sum(axis=1, keepdims=True)))[:, 0]


def _log_odds(logits: np.ndarray, column: int) -> np.ndarray:
    return logits[:, column] - _others(logits, column)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    # exp of a negative number never overflows
    low = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, low) / (1.0 + low)


KINDS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "logit": lambda logits, column: logits[:, column],
    "sigmoid": lambda logits, column: _sigmoid(logits[:, column]),
    "softmax": lambda logits, column: _sigmoid(_log_odds(logits, column)),
    "log_odds": _log_odds,
}
AMONG_SEVERAL = ("softmax", "log_odds")
FORM = re.compile(r"(\w+)(?:\[(.+)\])?")


def split_head(head: str) -> tuple[str, str | None]:
    """Return the kind of a head and the label it names, or None.

    Raises:
        RewardError: there is no such head.
    """
    match = FORM.fullmatch(head)
    if match is None or match[1] not in KINDS:
        forms = ", ".join(f"{kind}[LABEL]" for kind in KINDS)
        raise RewardError(f"there is no head {head!r}: it is logit, sigmoid, or one of {forms}")
    return match[1], match[2]


def column_of(head: str, labels: Sequence[str], source: str) -> int:
    """Return the number of the output that a head reads.

    Args:
        head: as in the table.
        labels: names of the outputs.
        source: what the model is called in messages.

    Raises:
        RewardError: the head names no label where there are several, one that does not exist, or
            needs several labels where there is one.
    """
    kind, label = split_head(head)
    if len(labels) == 1 and kind in AMONG_SEVERAL:
        raise RewardError(
            f"{source} has one label, and {kind} is among several.\nUse the head logit or sigmoid."
        )
    if label is None and len(labels) == 1:
        return 0
    if label is None:
        raise RewardError(
            f'{source} has {len(labels)} labels ({", ".join(labels)}), and the head "{head}" does '
            f"not say which counts.\nChoose one: --rewards.0.kwargs.head 'log_odds[{labels[-1]}]'"
        )
    if label in labels:
        return list(labels).index(label)
    if label.isdecimal() and int(label) < len(labels):
        return int(label)
    near = get_close_matches(label, labels, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"They are {', '.join(labels)}."
    raise RewardError(f'{source} has no label "{label}" among {len(labels)}. {hint}')


def read_head(head: str, logits: np.ndarray, column: int) -> np.ndarray:
    """Return [N] what a head says of outputs.

    Args:
        head: as in the table.
        logits: [N, K] outputs, float64.
        column: from `column_of`.
    """
    return KINDS[split_head(head)[0]](logits, column)
