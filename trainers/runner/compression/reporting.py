"""What the report split and held-out tasks say, once the search is over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from trainers.compress.database import Database
from trainers.compress.row_files import read_splits
from trainers.compress.short_recovery import model_kl
from trainers.compress.spaces import Space
from trainers.compress.units import SizePlan
from trainers.runner.compression.checking import CheckedModel
from trainers.runner.compression.finishing import kept_shares, load_smaller, plan_from_json
from trainers.runner.compression.writer import task_score, text_writer


def plans_of(space: Space, results: Mapping[str, Any]) -> dict[str, SizePlan]:
    """Return the plan of the model and that of every searcher that has one, by name."""
    searchers = {
        name: space.plan(outcome["plan"])
        for name, outcome in results["search"].items()
        if outcome["plan"] is not None
    }
    return {"model": plan_from_json(results["model"]["plan"]), **searchers}


def qualities(database: Database, plans: Mapping[str, SizePlan]) -> dict[str, Any]:
    """Return KL on the report split and what every layer keeps, by the name of the plan."""
    kls = database.report_kls(list(plans.values()))
    return {
        "kl": dict(zip(plans, kls, strict=True)),
        "kept": {name: kept_shares(plan, database.dense) for name, plan in plans.items()},
    }


def recovered_kl(dense: PreTrainedModel, folder: Path, before: float) -> dict[str, float]:
    """Return the KL of the recovered model, and of the sliced one under another name.

    Args:
        dense: the dense model.
        folder: of the run.
        before: KL of the sliced model.
    """
    report = read_splits(folder / "texts.safetensors").report
    return {"sliced": before, "model": model_kl(dense, load_smaller(folder / "model"), report)}


def scores(checked: CheckedModel, dense: PreTrainedModel, smaller: Path) -> dict[str, Any]:
    """Return mean and 95 % interval of dense and smaller model on held-out tasks."""
    models = {"dense": dense, "model": load_smaller(smaller)}
    rows: dict[str, Any] = {}
    for name, model in models.items():
        done = task_score(text_writer(checked.config, checked.chat, model))
        rows[name] = {"mean": done.mean, "low": done.ci_low, "high": done.ci_high}
    return rows
