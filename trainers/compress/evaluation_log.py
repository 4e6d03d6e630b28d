"""Every evaluation of a search in a file, a line each, so that none is paid for twice.

A line is written when its evaluation ends. A kill can cut the last line in two; it is taken off.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple, final

from trainers.compress.units import Choice, SizePlan
from trainers.compress.variants import Method
from trainers.errors import CheckpointError
from trainers.redaction.text_files import append


class Evaluated(NamedTuple):
    """What an evaluation is known by: plan, selection tokens, how units are made smaller."""

    plan: SizePlan
    tokens: int
    method: Method


class Price(NamedTuple):
    """What an evaluation gave and cost.

    Attributes:
        kl: nats per token.
        evaluations: of the counter of `database.py`.
    """

    kl: float
    evaluations: int


@final
class EvaluationLog:
    """The file of evaluations; it is begun where there is none.

    Args:
        file: JSON lines.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        if file.is_file():
            _cut_torn_line(file)

    def read(self) -> dict[Evaluated, Price]:
        """Return all evaluations, in the order of the file.

        Raises:
            CheckpointError: a line is damaged.
        """
        if not self._file.is_file():
            return {}
        known: dict[Evaluated, Price] = {}
        for number, line in enumerate(self._file.read_text("utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                plan = SizePlan(tuple(Choice(*choice) for choice in row["plan"]))
                key = Evaluated(plan, row["tokens"], Method(**row["method"]))
                known[key] = Price(row["kl"], row["evaluations"])
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{self._file}, line {number} is no evaluation: {error}. Remove that line, and "
                    "its plan is evaluated again."
                ) from error
        return known

    def add(self, key: Evaluated, price: Price) -> None:
        """Append an evaluation."""
        method = {"score": key.method.score, "compensates": key.method.compensates}
        row = {
            "plan": [list(choice) for choice in key.plan.choices],
            "tokens": key.tokens,
            "method": method,
            "kl": price.kl,
            "evaluations": price.evaluations,
        }
        append(self._file, json.dumps(row) + "\n")


def _cut_torn_line(file: Path) -> None:
    data = file.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(file, end)
