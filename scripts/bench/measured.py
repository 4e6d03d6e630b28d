"""What was measured last of each row, in a file of the repository: pages outlive runs/bench.

A row that is measured anew replaces the one before; every sitting names the code it measured.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scripts.bench import control
from scripts.bench.measure import kept
from scripts.bench.rows import TABLES, Row
from scripts.bench.sittings import SITTINGS

FILE = Path(__file__).parent / "measured.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the rounds of a row came to.

    Attributes:
        other: median of the other side, in the figure's unit.
        ours: median of ours.
        ratios: how many times better, of each round.
    """

    other: float
    ours: float
    ratios: Sequence[float]

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return median(self.ratios)


def read() -> dict[str, Any]:
    """Return what the file holds: results by the key of a row, sittings by name, control's rows."""
    if not FILE.is_file():
        return {"rows": {}, "sittings": {}, "control": []}
    return json.loads(FILE.read_text(encoding="utf-8"))


def fresh_result(row: Row) -> Result | None:
    """Return what runs/bench keeps of a row; None where nothing is."""
    rounds = (row.values(item["sides"]) for item in kept(row.sitting)["rounds"])
    values = [value for value in rounds if value is not None]
    if not values:
        return None
    other, ours, ratios = zip(*values, strict=True)
    return Result(other=median(other), ours=median(ours), ratios=ratios)


def result_of(row: Row) -> Result | None:
    """Return the newest result of a row; None where it was never measured."""
    stored = read()["rows"].get(row.key)
    return fresh_result(row) or (None if stored is None else Result(**stored))


def fresh_sittings() -> dict[str, dict[str, Any]]:
    """Return how each sitting of runs/bench was measured, by name."""
    measured: dict[str, dict[str, Any]] = {}
    for sitting in SITTINGS:
        record = kept(sitting.name)
        if record["rounds"]:
            measured[sitting.name] = {
                "rounds": len(record["rounds"]),
                "minutes": round(record["minutes"], 1),
                "load": median(item["load"] for item in record["rounds"]),
                "day": time.strftime("%Y-%m-%d", time.gmtime(record["rounds"][-1]["time"])),
                "code": record["product"],
            }
    return measured


def control_rows() -> list[dict[str, Any]]:
    """Return the newest rows of control."""
    return control.rows() or read()["control"]


def sittings() -> dict[str, dict[str, Any]]:
    """Return how each sitting was measured last, by name, in the order of `SITTINGS`."""
    known = {**read()["sittings"], **fresh_sittings()}
    return {sitting.name: known[sitting.name] for sitting in SITTINGS if sitting.name in known}


def store() -> None:
    """Write the newest of everything to the file."""
    rows = [row for table in TABLES.values() for part in table.values() for row in part]
    results = {row.key: result for row in rows if (result := result_of(row)) is not None}
    text = json.dumps(
        {
            "rows": {key: _rounded(asdict(result)) for key, result in sorted(results.items())},
            "sittings": sittings(),
            "control": _rounded(control_rows()),
        },
        indent=1,
    )
    aside = FILE.with_suffix(".tmp")
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(FILE)


def _rounded(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return the same with numbers of six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
