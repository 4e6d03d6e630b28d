"""A run that moves on to other numbers of ranks and other stages, held against one that stays.

    .venv/bin/python -m tests.resume.moves

One process of plain torch records what it samples. A run on DeepSpeed learns from the same text,
stops, and is resumed elsewhere: its losses, KL and gradient norms are those of the first, but for
rounding. About 4 CPU minutes.
"""

import json
import tempfile
from pathlib import Path

from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.parity.table import FIGURES, SHARD_ALL, apart_of, logged, replayed

EACH = 2
"""Iterations at each number of ranks."""
LEARNS = {"whole": {}, "LoRA": {"model.lora.rank": 3}}
WAYS = {
    "ZeRO 2: 2, 1, 4 ranks": [(2, 2, "none"), (1, 2, "none"), (4, 2, "none")],
    "ZeRO 3, all offloaded: 2, 1, 4 ranks": [(2, 3, "params"), (1, 3, "params"), (4, 3, "params")],
    "2 ranks: ZeRO 3, 1, 2 with the optimizer offloaded": [
        (2, 3, "none"),
        (2, 1, "none"),
        (2, 2, "optimizer"),
    ],
}


def measure(way, learns, folder):
    """How far the figures of a run that moves on are from those of one process that does not."""
    steps = WAYS[way]
    model, user = str(tiny.save_model(folder / "model")), folder / "user.json"
    user.write_text(json.dumps(SHARD_ALL), encoding="utf-8")
    base = {"model.path": model, "checkpoint.every": 1, **LEARNS[learns]}
    total = EACH * len(steps)
    whole = {**base, "run.dir": str(folder / "whole"), "ppo.num_iterations": total}
    recorded = replayed(whole)
    for number, (size, stage, offload) in enumerate(steps):
        changes = {**base, "run.dir": str(folder / "moved"), "backend.name": "deepspeed",
                   "backend.zero.stage": stage, "backend.zero.offload": offload,
                   "ppo.num_iterations": EACH * (number + 1)}  # fmt: skip
        if stage == 3:
            changes["backend.zero.config"] = str(user)
        ranks = run_ranks(replayed, changes, recorded, number > 0, size=size, timeout=500)
        seen = [key for rank in ranks for key, _ in rank]
        assert {iteration for iteration, *_ in seen} == {EACH * number, EACH * number + 1}
    wanted, got = logged(whole["run.dir"]), logged(changes["run.dir"])
    assert len(wanted) == len(got) == total
    return apart_of(got, wanted)


def main():
    """Measure and print the table."""
    print(f"| run | learns | {' | '.join(FIGURES)} |")  # noqa: T201 - the result
    print("| --- " * (2 + len(FIGURES)) + "|")  # noqa: T201
    for way in WAYS:
        for learns in LEARNS:
            with tempfile.TemporaryDirectory() as folder:
                apart = measure(way, learns, Path(folder))
            figures = [f"{value:.0e}" for value in apart.values()]
            print("|", " | ".join([way, learns, *figures]), "|", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
