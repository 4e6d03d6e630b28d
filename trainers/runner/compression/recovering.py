"""Quality that comes back after slicing: which plan recovers best, and the recovery itself."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainers.compress.database import Database
from trainers.compress.short_recovery import model_kl, recover_briefly
from trainers.compress.slicing import slice_model
from trainers.compress.token_rows import Splits
from trainers.config.compression import CompressionSettings
from trainers.errors import ConfigError
from trainers.run_dir.record import read_status
from trainers.runner.compression.checking import CheckedModel
from trainers.runner.compression.finishing import plan_from_json
from trainers.runner.compression.searching import StoppedError
from trainers.runner.recover import recover


def reranked(
    database: Database,
    splits: Splits,
    rows: list[dict[str, Any]],
    settings: CompressionSettings,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return the first finalists by their KL on selection after a short recovery, best first.

    Args:
        database: of the dense model.
        splits: calibration is learned from.
        rows: finalists, best before recovery first.
        settings: how many, and how long.
        say: told what each came to.
    """
    scored: list[dict[str, Any]] = []
    for row in rows[: settings.rerank]:
        plan = plan_from_json(row["plan"])
        smaller = slice_model(database.model, plan, database.variants.variant)
        recover_briefly(
            database.model,
            smaller,
            splits.calibration,
            steps=settings.rerank_steps,
            seed=settings.seed,
        )
        kl = model_kl(database.model, smaller, splits.selection)
        say(f"rerank: KL {row['kl']:.4f}, {kl:.4f} after {settings.rerank_steps} steps")
        scored.append({**row, "recovered_kl": kl})
    return sorted(scored, key=lambda row: (row["recovered_kl"], row["kl"], row["plan"]))


def recovered(checked: CheckedModel, student: Path, folder: Path) -> dict[str, Any]:
    """Distill the dense model into the sliced one; return where the result is.

    Args:
        checked: model and settings.
        student: folder of the sliced model.
        folder: of the run of the recovery, which continues where it was interrupted.

    Raises:
        StoppedError: it was asked to stop, and has saved what it had.
    """
    settings = checked.settings
    if settings.recover == "none":
        raise ConfigError("there is no recovery to run: set --recover ppo, gkd or sft")
    model = recover(
        student,
        checked.source,
        method=settings.recover,
        name=folder.name,
        run_dir=folder.parent,
        max_minutes=settings.recover_minutes,
        overrides=overrides(checked),
        resume=(folder / "config.yaml").is_file(),
        loggers=(),
    )
    status = read_status(folder)
    if status.get("status") == "interrupted":
        raise StoppedError
    return {"folder": str(model), "iterations": status.get("iteration", 0)}


def overrides(checked: CheckedModel) -> Mapping[str, Any]:
    """Return what a recovery takes from the dense model's own settings."""
    config, settings = checked.config, checked.settings
    return {
        "envs.0.id": config.env.id,
        "envs.0.kwargs": dict(config.env.kwargs),
        "generation.max_prompt_tokens": config.generation.max_prompt_tokens,
        "generation.max_new_tokens": config.generation.max_new_tokens,
        "ppo.num_iterations": settings.recover_iterations,
        "run.seed": settings.seed,
        "eval.num_tasks": 0,
        "log.wandb.enabled": False,
    }
