"""A latency table as JSON has it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trainers.compress.latency import Fit, LatencyTable, Workload


def latency_to_json(table: LatencyTable) -> dict[str, Any]:
    """Return a table in lists and mappings."""
    return {
        "constant": table.constant,
        "units": [[kind, size, seconds] for (kind, size), seconds in table.units.items()],
        "fit": {**asdict(table.fit), "rows": [list(row) for row in table.fit.rows]},
        "workload": asdict(table.workload),
        "record": dict(table.record),
    }


def latency_from_json(tree: Mapping[str, Any]) -> LatencyTable:
    """Return the table of which `latency_to_json` returned `tree`."""
    fit = tree["fit"]
    return LatencyTable(
        constant=tree["constant"],
        units={(kind, size): seconds for kind, size, seconds in tree["units"]},
        fit=Fit(**{**fit, "rows": tuple(tuple(row) for row in fit["rows"])}),
        workload=Workload(**tree["workload"]),
        record=tree["record"],
    )
