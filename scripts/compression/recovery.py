"""What distillation gives back: a pruned teacher, three methods, equal tokens.

Run: python -m scripts.compression.recovery TEACHER OUT [ITERATIONS] [SEED...]

TEACHER is the folder of a model that solves llmgym/Arithmetic-v0, as `llmgym train teacher` makes.
Half of its heads and of its MLP channels are sliced off, with weights that make up for them, and
`llmgym train distill` recovers what is left by each method. OUT keeps students, runs and
results.jsonl; a start after an interruption continues. 40 iterations take about 5 CPU minutes a
method and seed.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from scripts.compression.baselines import database_of, rows_of
from trainers.compress.database import Database
from trainers.compress.slicing import slice_model
from trainers.compress.token_rows import TokenRows
from trainers.compress.units import uniform_plan
from trainers.config.files import read
from trainers.export.smaller import ExpectedLogits, export_smaller
from trainers.functional.distillation import kl_divergence
from trainers.models.loading import load_causal_lm, load_chat, load_tokenizer
from trainers.run_dir.record import lines, read_status
from trainers.runner.recover import DistillMethod, recover

ENV = "llmgym/Arithmetic-v0"
METHODS: tuple[DistillMethod, ...] = ("ppo", "gkd", "sft_kd")
HELD_OUT = 1000
"""Sums of the test split on which KL is measured, with their right answers."""


def sliced(teacher: str, out: Path) -> Path:
    """Write the student, half of every layer; return its folder, which may be there already."""
    folder = out / "student"
    if folder.is_dir():
        return folder
    database: Database = database_of(teacher)
    geometry = database.variants.geometry
    plan = uniform_plan(
        geometry, groups=geometry.num_kv_heads // 2, channels=geometry.intermediate_size // 2
    )
    smaller = slice_model(database.model, plan, database.variants.variant)
    rows = held_out(teacher)[:4]
    expected = ExpectedLogits(
        tokens=rows.tokens, mask=rows.mask, logits=database.logits(plan, rows)
    )
    card: dict[str, Any] = {"title": "half", "base_model": teacher}
    export_smaller(folder, smaller, expected, card, tokenizer=Path(teacher))
    return folder


def held_out(model: str) -> TokenRows:
    """Return held-out sums with their answers, in the tokens of a model."""
    config = read([], {"model.path": model})
    chat = load_chat(config, load_tokenizer(config), env=ENV)
    return rows_of(chat, "test", range(HELD_OUT))


@torch.no_grad()
def table_of_logprobs(model: PreTrainedModel, rows: TokenRows) -> torch.Tensor:
    """Return log-probabilities [N, V] before the N tokens of the answers."""
    logits = model(input_ids=rows.tokens, attention_mask=rows.mask.long()).logits
    return logits[rows.counted].float().log_softmax(-1)


def divergences(student: Path, teacher: str) -> dict[str, float]:
    """Return both KL in nats per token of the right answers to held-out sums."""
    rows = held_out(teacher)
    mine, theirs = (table_of_logprobs(load_causal_lm(str(m)), rows) for m in (student, teacher))
    return {
        "forward_kl": float(kl_divergence(theirs, mine).mean()),
        "reverse_kl": float(kl_divergence(mine, theirs).mean()),
    }


def scores(run: Path) -> tuple[float, float]:
    """Return the held-out reward before the first iteration and after the last."""
    made = [line["eval/score"] for line in lines(run / "metrics.jsonl") if "eval/score" in line]
    return made[0], made[-1]


def recovered(
    student: Path, teacher: str, out: Path, method: DistillMethod, iterations: int, seed: int
) -> dict[str, Any]:
    """Run one method; return its figures."""
    name, began = f"{method}-{seed}", time.process_time()
    overrides = {
        "run.seed": seed,
        "ppo.num_iterations": iterations,
        "eval.every": 0,
        "checkpoint.keep_last": 1,
        "log.wandb.enabled": False,
    }
    exists = (out / "runs" / name).is_dir()
    folder = recover(
        student,
        teacher,
        method=method,
        name=name,
        run_dir=out / "runs",
        overrides=overrides,
        resume=exists,
    )
    status = read_status(folder.parent)["status"]
    if status != "finished":
        sys.exit(f"{name} is {status}; the same command continues it")
    before, after = scores(folder.parent)
    made = [x for x in lines(folder.parent / "metrics.jsonl") if "train/tokens" in x]
    return {
        "method": method,
        "seed": seed,
        "tokens": made[-1]["train/tokens"],
        "cpu_minutes": (time.process_time() - began) / 60,
        "resumed": exists,
        "reward_before": before,
        "reward": after,
        **divergences(folder, teacher),
    }


def main(teacher: str, folder: str, iterations: str = "40", *seeds: str) -> None:
    """Print one line of JSON per model: the student as sliced, then each method and seed."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    student, file = sliced(teacher, out), out / "results.jsonl"
    done = {(x["method"], x["seed"]) for x in lines(file)} if file.is_file() else set()

    def keep(result: dict[str, Any]) -> None:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)

    if ("none", 0) not in done:
        keep({"method": "none", "seed": 0, **divergences(student, teacher)})
    for seed in map(int, seeds or ("0",)):
        for method in METHODS:
            if (method, seed) not in done:
                keep(recovered(student, teacher, out, method, int(iterations), seed))


if __name__ == "__main__":
    main(*sys.argv[1:])
