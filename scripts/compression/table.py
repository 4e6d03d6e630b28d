"""Every searcher under several budgets and seeds, on the problem of a compression that has run.

Run: python -m scripts.compression.table RUN OUT EVALUATIONS KIND SHARE...

RUN is a folder that `llmgym compress` has written: its texts and its latency table are used. Each
cell is a line of OUT/cells.jsonl when it ends, every evaluation is in OUT/evaluations.jsonl: the
same command continues. The report split is read when all cells are there. KIND is latency or params
(uniform plans, which are plain folders), or bytes+int8 (a level and bits for every unit).
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.compression.table import PlanTable
from trainers.compress.costs import CostModel
from trainers.compress.database import Database
from trainers.compress.evaluation_log import EvaluationLog
from trainers.compress.latency_files import latency_from_json
from trainers.compress.problem import num_sensitivities, table_of
from trainers.compress.row_files import read_splits
from trainers.compress.spaces import PerLayerSpace, Space, UniformSpace
from trainers.compress.units import DENSE_BITS, Geometry
from trainers.config.compression import SearcherName
from trainers.config.files import read
from trainers.models.loading import load_causal_lm
from trainers.redaction.text_files import append, write
from trainers.run_dir.record import lines
from trainers.runner.compression.searching import SearchTask, searched

ONCE: tuple[SearcherName, ...] = ("uniform", "shortgpt", "sleb", "greedy", "dp")
"""Searchers without randomness: one seed tells all."""
DRAWN: tuple[SearcherName, ...] = ("random", "evolution", "evolution-from-dp", "ppo-cold", "ppo")
SEEDS = range(3)
INT8 = "bytes+int8"


def space_of(kind: str, geometry: Geometry) -> Space:
    """Return the decisions of a kind of budget."""
    if kind == INT8:
        return PerLayerSpace(geometry, bits=(DENSE_BITS, 8))
    return UniformSpace(geometry)


class Bench:
    """One problem, and the cells of its table.

    Args:
        run: a compression.
        out: folder of the results.
        kind: of the budget.
        limit: evaluations of each searcher.
    """

    def __init__(self, run: Path, out: Path, kind: str, limit: int) -> None:
        self.out, self.kind, self.limit = out, kind, limit
        out.mkdir(parents=True, exist_ok=True)
        source = str(read([run / "config.yaml"]).model.path)
        splits = read_splits(run / "texts.safetensors")
        log = EvaluationLog(out / "evaluations.jsonl")
        self.database = Database(load_causal_lm(source), splits, log=log)
        geometry = self.database.variants.geometry
        self.space = space_of(kind, geometry)
        latency = json.loads((run / "stages" / "latency.json").read_text("utf-8"))["result"]
        table = latency_from_json(latency) if kind == "latency" else None
        self.costs = CostModel(geometry, latency=table)
        began = time.perf_counter()
        self.table: PlanTable = table_of(self.database, self.space, self.costs, run.name)
        self.paid = num_sensitivities(self.space, geometry)
        self.influences = self.database.block_influences()
        print(f"{self.paid} sensitivities, {time.perf_counter() - began:.0f} s", flush=True)

    def task(self, share: float, seed: int) -> SearchTask:
        """Return what is searched in a cell."""
        return SearchTask(
            database=self.database,
            space=self.space,
            table=self.table,
            shares={self.kind.partition("+")[0]: share},
            paid=self.paid,
            limit=self.limit,
            seed=seed,
            influences=self.influences,
        )

    def fill(self, shares: Sequence[float]) -> list[dict[str, Any]]:
        """Run every cell that is not there; return all."""
        file = self.out / "cells.jsonl"
        done = {(row["share"], row["searcher"], row["seed"]): row for row in lines(file)}
        for share in shares:
            for name in (*ONCE, *DRAWN):
                for seed in SEEDS if name in DRAWN else (0,):
                    if (share, name, seed) in done:
                        continue
                    cell = searched(name, self.task(share, seed), self.out, lambda _: None)
                    row = {"share": share, "searcher": name, "seed": seed, **cell}
                    append(file, json.dumps(row) + "\n")
                    done[share, name, seed] = row
                    kl = "none" if row["kl"] is None else f"{row['kl']:.5f}"
                    print(f"{share} {name} {seed}: {kl}, {row['evaluations']}", flush=True)
        return [row for key, row in done.items() if key[0] in shares]

    def report(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the KL of each row's plan on the report split, NaN without a plan."""
        plans = {tuple(row["plan"]): self.space.plan(row["plan"]) for row in rows if row["plan"]}
        kls = dict(zip(plans, self.database.report_kls(list(plans.values())), strict=True))
        return [kls[tuple(row["plan"])] if row["plan"] else float("nan") for row in rows]


def markdown(rows: Sequence[Mapping[str, Any]], reports: Sequence[float]) -> str:
    """Return the table: means over seeds, with the smallest and the largest."""
    cells: dict[tuple[float, str], list[tuple[float, float, int]]] = {}
    for row, report in zip(rows, reports, strict=True):
        kl = float("nan") if row["kl"] is None else row["kl"]
        key = row["share"], row["searcher"]
        cells.setdefault(key, []).append((kl, report, row["evaluations"]))
    head = "| budget | searcher | KL on selection | KL on report | evaluations |\n"
    text = head + "| --- | --- | --- | --- | --- |\n"
    for (share, name), values in sorted(cells.items(), key=lambda item: -item[0][0]):
        selection, report, evaluations = (np.array(column) for column in zip(*values, strict=True))
        text += (
            f"| {share:g} | {name} | {spread(selection)} | {spread(report)} | "
            f"{round(evaluations.mean())} |\n"
        )
    return text


def spread(values: np.ndarray) -> str:
    """Return the mean of values, and their ends where they differ."""
    if np.isnan(values).any():
        return "no plan"
    if np.ptp(values) < 5e-6:
        return f"{values.mean():.4f}"
    return f"{values.mean():.4f} ({values.min():.4f} to {values.max():.4f})"


def main(run: str, out: str, evaluations: str, kind: str, *shares: str) -> None:
    """Fill the table, write OUT/table.md and print it with the time that all cells took."""
    bench = Bench(Path(run), Path(out), kind, int(evaluations))
    rows = bench.fill([float(share) for share in shares])
    text = markdown(rows, bench.report(rows))
    minutes = sum(row["seconds"] for row in rows) / 60
    write(Path(out) / "table.md", text)
    print(f"{text}\n{minutes:.0f} minutes of searches, {time.process_time() / 60:.0f} of CPU now")


if __name__ == "__main__":
    main(*sys.argv[1:])
