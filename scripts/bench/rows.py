"""The rows of the table: comparisons of two sides of a sitting, or of one side with the limit."""

from dataclasses import dataclass
from typing import Any, Literal

from scripts.bench import sittings as sat
from scripts.bench.shapes import Shape, update_flops

Figure = Literal["cpu", "growth", "tokens", "share"]
Round = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A comparison: one side of ours with another of the same sitting.

    Attributes:
        work: the first column.
        sitting: its name.
        ours: a side of it.
        other: what it is compared with; empty for a share of the limit.
        figure: `cpu` seconds of an iteration; `growth` of memory at its peak; `tokens` per CPU
            second; `share` of the limit that the update reaches.
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
        return " / ".join((self.sitting, self.ours, self.other or sat.LIMIT, self.figure))

    def shape(self) -> Shape:
        """Return the shape that our side runs."""
        sitting = next(item for item in sat.SITTINGS if item.name == self.sitting)
        return sitting.shape.changed(**sitting.sides[self.ours].changes)

    def values(self, sides: Round) -> tuple[float, float, float] | None:
        """Return (other, ours, how many times better) of a round; None where a side is absent."""
        ours, other = sides.get(self.ours), sides.get(self.other or sat.LIMIT)
        if ours is None or other is None:
            return None
        if self.figure == "share":
            shape = self.shape()
            rate = update_flops(shape) / ours["phases"]["update"] / 1e9
            return other[shape.dtype], rate, rate / other[shape.dtype]
        if self.figure == "tokens":
            rates = [side["tokens"] / side["cpu"] for side in (other, ours)]
            return rates[0], rates[1], rates[1] / rates[0]
        return other[self.figure], ours[self.figure], other[self.figure] / ours[self.figure]


RAGGED = "responses end geometrically, mean 64, at most 192"
UNIFORM = "all responses 64 tokens"
MAIN = [
    Row(work=f"{RAGGED}, fp32", sitting="ragged", ours=sat.OURS, other=sat.TRL, target=2.8),
    Row(work=f"{RAGGED}, fp32", sitting="ragged", ours=sat.OURS, other=sat.FORMER),
    Row(
        work="the same, bf16, separate critic",
        sitting="ragged",
        ours=sat.BF16,
        other=sat.TRL,
        target=4.0,
    ),
    Row(
        work="the same, bf16, separate critic",
        sitting="ragged",
        ours=sat.BF16,
        other=f"{sat.FORMER} bf16",
    ),
    Row(
        work="the same, bf16, shared trunk",
        sitting="ragged",
        ours=sat.SHARED,
        other=sat.TRL,
        target=6.0,
    ),
    Row(
        work="the same, bf16, shared trunk",
        sitting="ragged",
        ours=sat.SHARED,
        other=f"{sat.FORMER} bf16, shared trunk",
    ),
    Row(work=f"{UNIFORM}, fp32", sitting="uniform", ours=sat.OURS, other=sat.TRL, target=1.2),
    Row(work=f"{UNIFORM}, fp32", sitting="uniform", ours=sat.OURS, other=sat.TRL_NO_GC),
    Row(work=f"{UNIFORM}, fp32", sitting="uniform", ours=sat.OURS, other=sat.FORMER),
]
MEMORY = [
    Row(
        work=f"growth of peak memory, {name}, fp32",
        sitting=name,
        ours=sat.OURS,
        other=other,
        figure="growth",
        target=target if other == sat.TRL else None,
    )
    for name, target in (("ragged", 3.5), ("uniform", 2.0))
    for other in (sat.TRL, sat.FORMER)
]
SHARES = [
    Row(work=f"update, {work}", sitting=name, ours=ours, figure="share", target=target)
    for work, name, ours, target in (
        ("uniform, fp32", "uniform", sat.OURS, 0.80),
        ("ragged, fp32", "ragged", sat.OURS, 0.75),
        ("uniform, bf16", "uniform", sat.BF16, 0.55),
        ("ragged, bf16", "ragged", sat.BF16, 0.50),
        ("SmolLM2-135M, bf16", "smollm2-iteration", sat.OURS, None),
    )
]
GENERATION = [
    Row(
        work=f"generation, {work}",
        sitting=f"generation-{name}",
        ours=sat.OURS,
        other=other,
        figure="tokens",
        target=target if other == sat.GENERATE else None,
    )
    for work, name, target in (
        ("64 rows of 64 tokens, fp32", "uniform", 1.8),
        ("16 ragged rows, fp32", "16", 4.0),
        ("64 ragged rows, fp32", "64", 4.0),
        ("256 ragged rows, fp32", "256", 7.0),
    )
    for other in (sat.GENERATE, sat.FORMER)
]
CHAT = "generation, SmolLM2-135M, bf16, 64 chat prompts, 64 tokens"
STEP = "one iteration, SmolLM2-135M, bf16, 64 responses of 48 tokens, 1 epoch"
SMOLLM2 = [
    *(
        Row(
            work=CHAT,
            sitting="smollm2-generation",
            ours=ours,
            other=other,
            figure="tokens",
            target=target,
        )
        for ours, other, target in (
            (sat.OURS, sat.GENERATE, None),
            (sat.OURS, sat.FORMER, None),
            (sat.OURS, sat.VLLM_CPU, 1.0),
            (sat.VLLM, sat.VLLM_CPU, 1.0),
        )
    ),
    Row(work=STEP, sitting="smollm2-iteration", ours=sat.OURS, other=sat.FORMER, target=1.65),
    Row(work=STEP, sitting="smollm2-iteration", ours=sat.OURS, other=f"{sat.TRL}, bf16"),
]
OTHERS = [
    Row(
        work="groups: 16 prompts of 256 tokens, 8 responses of 64 to each, fp32",
        sitting="groups",
        ours=sat.OURS,
        other=sat.FORMER,
        target=2.0,
    ),
    *(
        Row(
            work=f"{kind}: 16 prompts, 4 ragged responses to each, no critic, fp32",
            sitting=f"no-critic-{kind.lower()}",
            ours=sat.OURS,
            other=f"TRL 1.16 {kind}",
        )
        for kind in ("GRPO", "RLOO")
    ),
    Row(
        work="adapters of rank 16 (LoRA), ragged, critic with adapters of its own, fp32",
        sitting="adapters",
        ours=sat.OURS,
        other=sat.AGILERL,
    ),
]
AXES = [
    Row(
        work=f"{axis}: {point}",
        sitting=sat.slug(f"axis {axis} {point}"),
        ours=sat.OURS,
        other=sat.TRL,
    )
    for axis, points in sat.AXES.items()
    for point in points
]
QUICK = [
    Row(work="16 ragged rows, fp32", sitting="quick-ragged", ours=sat.OURS, other=sat.TRL),
    Row(work="16 ragged rows, fp32", sitting="quick-ragged", ours=sat.OURS, other=sat.FORMER),
    Row(work="update, 16 ragged rows, fp32", sitting="quick-ragged", ours=sat.OURS, figure="share"),
    Row(
        work="generation, 16 ragged rows, fp32",
        sitting="quick-generation",
        ours=sat.OURS,
        other=sat.GENERATE,
        figure="tokens",
    ),
]
TABLES = {
    "table": {
        "Iterations": MAIN,
        "Memory": MEMORY,
        "Share of the limit": SHARES,
        "Generation": GENERATION,
        "Groups, no critic, adapters": OTHERS,
        "SmolLM2-135M": SMOLLM2,
    },
    "axes": {"One axis at a time": AXES},
    "quick": {"Quick": QUICK},
}
