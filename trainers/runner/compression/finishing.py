"""The end of a compression: the best plan, its tensors, and what they are worth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from llmgym.compression.optimum import Fronts
from trainers.compress.costs import CostModel
from trainers.compress.database import EVALUATION_TOKENS, Database
from trainers.compress.slicing import slice_model, smaller_config
from trainers.compress.token_rows import TokenRows
from trainers.compress.units import Choice, SizePlan, uniform_sizes
from trainers.config.compression import CompressionSettings
from trainers.errors import ConfigError
from trainers.export.smaller import ExpectedLogits, export_smaller
from trainers.models.chat import ChatFormat
from trainers.models.hf_logging import quietly
from trainers.models.loading import count_parameters, load_causal_lm
from trainers.runner.compression.searching import SearchTask

TEST_ROWS = 4
"""Rows of selection that an export must compute as the candidate in memory."""
SLACK = 1e-9
"""Relative, for sums of costs."""
FRONT = tuple(round(0.35 + 0.1 * step, 2) for step in range(7))
"""Budgets that the page of a run shows, as shares of the dense model."""


def plan_to_json(plan: SizePlan) -> list[list[int]]:
    """Return [size, bits] of every unit."""
    return [list(choice) for choice in plan.choices]


def plan_from_json(tree: Iterable[Sequence[int]]) -> SizePlan:
    """Return the plan of which `plan_to_json` returned `tree`."""
    return SizePlan(tuple(Choice(*choice) for choice in tree))


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """Which plans may be exported.

    Attributes:
        costs: of units.
        budget: [M] of each cost, infinite where there is none.
    """

    costs: CostModel
    budget: np.ndarray

    def allow(self, plan: SizePlan, model: PreTrainedModel) -> bool:
        """Tell whether a plan is within the budget and a plain folder can hold it."""
        if not (self.costs.plan(plan) <= self.budget * (1 + SLACK)).all():
            return False
        try:
            smaller_config(model.config, plan)
        except ConfigError:
            return False
        return True


def finalists(
    database: Database, limits: PlanLimits, always: Sequence[SizePlan], *, count: int, tokens: int
) -> list[dict[str, Any]]:
    """Return the best plans of all searchers, scored on all selection tokens, best first.

    Args:
        database: has every plan that was tried.
        limits: which plans may win.
        always: plans that are scored whatever their rank, as the seed of PPO.
        count: of the others.
        tokens: of selection.
    """
    tried = database.tried()
    within = {plan: kl for plan, kl in tried.items() if limits.allow(plan, database.model)}
    ranked = sorted(within, key=lambda plan: (within[plan], plan.choices))[:count]
    chosen = dict.fromkeys([*ranked, *(plan for plan in always if plan in within)])
    kls = database.evaluate(list(chosen), tokens=max(tokens, EVALUATION_TOKENS))
    rows = [
        {"plan": plan_to_json(plan), "screened_kl": within[plan], "kl": kl}
        for plan, kl in zip(chosen, kls, strict=True)
    ]
    return sorted(rows, key=lambda row: (row["kl"], row["screened_kl"], row["plan"]))


def tokenizer_folder(source: str, chat: ChatFormat, aside: Path, *, is_own: bool) -> Path:
    """Return a folder whose tokenizer is that of the dense model.

    Args:
        source: of the dense model: a folder, a file or a hub id.
        chat: its tokenizer and template.
        aside: written where `source` is no folder, or has another tokenizer.
        is_own: whether the settings leave the model its own tokenizer.
    """
    if is_own and Path(source).is_dir():
        return Path(source)
    aside.mkdir(parents=True, exist_ok=True)
    chat.tokenizer.save_pretrained(aside)
    return aside


@quietly()
def exported(
    folder: Path,
    database: Database,
    plan: SizePlan,
    rows: TokenRows,
    about: Mapping[str, Any],
    *,
    tokenizer: Path,
) -> dict[str, Any]:
    """Slice, write and test a plan; return its sizes.

    Args:
        folder: of the model, replaced if it exists.
        database: of the dense model.
        plan: of one shape.
        rows: what the folder must compute as the candidate in memory does.
        about: of the model; see `model_card`.
        tokenizer: folder whose tokenizer is copied.

    Raises:
        CheckpointError: a fresh process computes something else.
    """
    part = rows[:TEST_ROWS]
    smaller = slice_model(database.model, plan, database.variants.variant)
    expected = ExpectedLogits(
        tokens=part.tokens, mask=part.mask, logits=database.logits(plan, part)
    )
    size = export_smaller(folder, smaller, expected, about, tokenizer=tokenizer)
    return {
        "bytes": size,
        "parameters": count_parameters(smaller),
        "dense_parameters": count_parameters(database.model),
        "layers": smaller.config.num_hidden_layers,
        "family": smaller.config.model_type,
    }


@quietly()
def exported_again(
    folder: Path, source: Path, rows: TokenRows, about: Mapping[str, Any], *, tokenizer: Path
) -> int:
    """Write a recovered model with the tokenizer of the sliced one; return its bytes.

    Args:
        folder: of the model, replaced if it exists.
        source: what the recovery wrote.
        rows: what the folder must compute as the model in memory does.
        about: of the model; see `model_card`.
        tokenizer: folder whose tokenizer is copied.

    Raises:
        CheckpointError: a fresh process computes something else.
    """
    part, model = rows[:TEST_ROWS], load_smaller(source)
    with torch.no_grad():
        logits = model(input_ids=part.tokens, use_cache=False).logits
    expected = ExpectedLogits(tokens=part.tokens, mask=part.mask, logits=logits)
    return export_smaller(folder, model, expected, about, tokenizer=tokenizer)


def model_card(source: str, settings: CompressionSettings, kept: str) -> dict[str, Any]:
    """Return what the README.md of the model says.

    Args:
        source: of the dense model.
        settings: of the compression.
        kept: what is left of it.
    """
    how = "" if settings.recover == "none" else f", then recovered by {settings.recover}"
    budget = ", ".join(settings.budget)
    return {
        "title": f"{Path(source).name}, smaller",
        "base_model": source,
        "stage": "compression",
        "text": f"Sliced under the budget {budget} of the dense model: {kept}{how}.",
    }


def kept_words(plan: SizePlan, dense: SizePlan) -> str:
    """Return what a plan of one shape keeps, for a person."""
    groups, channels = next((heads, mlp) for heads, mlp in plan.layers if mlp.size)
    full_groups, full_channels = dense.layers[0]
    return (
        f"{len(plan.kept)} of {len(plan.layers)} layers, {groups.size} of {full_groups.size} KV "
        f"groups, {channels.size} of {full_channels.size} channels"
    )


@torch.no_grad()
def load_smaller(folder: Path) -> PreTrainedModel:
    """Return a model that was exported, to be measured."""
    return load_causal_lm(str(folder)).eval().requires_grad_(False)


def kept_shares(plan: SizePlan, dense: SizePlan) -> list[list[float]]:
    """Return the shares of attention and MLP that every layer keeps."""
    return [
        [own.size / full.size for own, full in zip(choices, whole, strict=True)]
        for choices, whole in zip(plan.layers, dense.layers, strict=True)
    ]


def front(task: SearchTask, costs: CostModel) -> list[dict[str, Any]]:
    """Return for a grid of budgets what `dp` keeps there, and the best plan that was tried.

    Nothing is evaluated for it. The grid is of the first budget of the run.

    Args:
        task: what was searched.
        costs: of units.
    """
    kind = next(iter(task.shares))
    column = task.table.cost_names.index(kind)
    dense = task.database.dense
    tried = [
        (float(costs.plan(plan)[column]) / float(task.table.dense[column]), kl)
        for plan, kl in task.database.tried().items()
        if is_uniform(plan)
    ]
    fronts, rows = Fronts(task.table), list[dict[str, Any]]()
    for share in FRONT:
        budget = np.full(len(task.table.cost_names), np.inf)
        budget[column] = share * task.table.dense[column]
        choices = fronts.best(budget)
        if choices is None:
            continue
        within = [kl for cost, kl in tried if cost <= share * (1 + SLACK)]
        rows.append(
            {
                "kind": kind,
                "share": share,
                "kept": kept_shares(task.space.plan(choices.tolist()), dense),
                "predicted_kl": task.table.prediction(choices),
                "best_kl": min(within, default=None),
            }
        )
    return rows


def is_uniform(plan: SizePlan) -> bool:
    """Tell whether all layers that a plan keeps have one shape."""
    try:
        uniform_sizes(plan)
    except ConfigError:
        return False
    return True
