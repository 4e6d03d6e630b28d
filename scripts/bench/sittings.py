"""What is measured: sittings, whose sides take turns, and the rows of the table that they give.

To add a row: a side here if none fits, a sitting that holds both sides, and the row.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from scripts.bench.places import HERE, THEN
from scripts.bench.shapes import Shape

Figure = Literal["cpu", "growth", "share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of those that take turns.

    Attributes:
        worker: the file of `workers/` it runs.
        place: which environment and tree; see `places.py`.
        changes: what differs from the sitting's shape.
        options: what its worker is told besides.
    """

    worker: str
    place: str = HERE
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    options: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """Sides that take turns on one shape, in an order that is turned round each time.

    Attributes:
        table: which command measures it: `table`, `axes` or `quick`.
    """

    name: str
    shape: Shape
    sides: dict[str, Side]
    table: Literal["table", "axes", "quick"] = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A comparison: one side of ours with another of the same sitting.

    Attributes:
        work: the first column.
        sitting: its name.
        ours: a side of it.
        other: what it is compared with; empty for a share of the limit.
        figure: `cpu` seconds of an iteration; `growth` of memory at its peak; `share`, that of the
            limit which the update reaches.
        target: least ratio, or share; None where none is set.
    """

    work: str
    sitting: str
    ours: str
    other: str = ""
    figure: Figure = "cpu"
    target: float | None = None

    @property
    def key(self) -> str:
        """What the baseline calls it."""
        return "/".join((self.sitting, self.ours, self.other or "limit", self.figure))


OURS, BF16, SHARED = "llmgym", "llmgym bf16", "llmgym bf16, shared trunk"
FORMER = "9157903"
TRL, TRL_NO_GC = "TRL 1.12 PPO", "TRL 1.12 PPO without its gc"
GENERATE = "transformers' generate"
LIMIT = "limit"
PPO = "llmgym_ppo"
IN_BF16 = {"dtype": "bfloat16"}
IN_BF16_SHARED = {"dtype": "bfloat16", "critic": "shared"}
UNIFORM = {"mean_tokens": 64, "max_tokens": 64}
MAIN = Shape()
GEMM = Side(worker="gemm")

RAGGED_SIDES = {
    OURS: Side(worker=PPO),
    BF16: Side(worker=PPO, changes=IN_BF16),
    SHARED: Side(worker=PPO, changes=IN_BF16_SHARED),
    f"{FORMER}": Side(worker=PPO, place=THEN),
    f"{FORMER} bf16": Side(worker=PPO, place=THEN, changes=IN_BF16),
    f"{FORMER} bf16, shared trunk": Side(worker=PPO, place=THEN, changes=IN_BF16_SHARED),
    TRL: Side(worker="trl_ppo", place="trl-1.12"),
    LIMIT: GEMM,
}
UNIFORM_SIDES = {
    OURS: Side(worker=PPO),
    BF16: Side(worker=PPO, changes=IN_BF16),
    FORMER: Side(worker=PPO, place=THEN),
    TRL: Side(worker="trl_ppo", place="trl-1.12"),
    TRL_NO_GC: Side(worker="trl_ppo", place="trl-1.12", options={"gc": False}),
    LIMIT: GEMM,
}
WRITERS = {
    OURS: Side(worker="llmgym_generate"),
    FORMER: Side(worker="llmgym_generate", place=THEN),
    GENERATE: Side(worker="generate"),
}
SITTINGS = [
    Sitting(name="ragged", shape=MAIN, sides=RAGGED_SIDES),
    Sitting(name="uniform", shape=MAIN.changed(**UNIFORM), sides=UNIFORM_SIDES),
    Sitting(name="generation-uniform", shape=MAIN.changed(**UNIFORM), sides=WRITERS),
    *(
        Sitting(name=f"generation-{rows}", shape=MAIN.changed(num_prompts=rows), sides=WRITERS)
        for rows in (16, 64, 256)
    ),
]
RAGGED = "responses end geometrically, mean 64, at most 192"
ROWS = [
    Row(work=f"{RAGGED}, fp32", sitting="ragged", ours=OURS, other=TRL, target=2.8),
    Row(work="the same, bf16, separate critic", sitting="ragged", ours=BF16, other=TRL, target=4.0),
    Row(work="the same, bf16, shared trunk", sitting="ragged", ours=SHARED, other=TRL, target=6.0),
    Row(work="all responses 64 tokens, fp32", sitting="uniform", ours=OURS, other=TRL, target=1.2),
]
