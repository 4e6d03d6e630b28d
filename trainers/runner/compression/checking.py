"""What is refused before the weights of a model load: budgets, families, texts, evaluations."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from transformers import PreTrainedConfig

from llmgym.compression.budget import BudgetMask
from llmgym.compression.table import PlanTable
from llmgym.errors import TaskSourceError
from trainers.checkpoint.manifest import fingerprint
from trainers.compress.costs import CostModel
from trainers.compress.problem import cost_table, num_sensitivities
from trainers.compress.spaces import UniformSpace
from trainers.compress.units import Geometry, geometry_of
from trainers.config import Config
from trainers.config.compression import CompressionSettings
from trainers.errors import ConfigError
from trainers.models.chat import ChatFormat
from trainers.models.int8 import check_int8, is_int8
from trainers.models.loading import load_chat, load_config, load_tokenizer
from trainers.runner.compression.searching import check_evaluations

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
"""Files of a model folder that make it another model."""


@final
class CheckedModel:
    """A dense model and settings, as far as they can be judged before weights load.

    Args:
        config: `model.path` is the dense model.
        settings: of the compression.
        has_env: whether the environment of `config` is one that the model was trained for.

    Attributes:
        config: with the name of the run, without stages that train.
        source: of the dense model.
    """

    def __init__(self, config: Config, settings: CompressionSettings, *, has_env: bool) -> None:
        run = replace(config.run, name=settings.name, dir=settings.dir, seed=settings.seed)
        self.config = replace(
            config,
            run=run,
            ppo=replace(config.ppo, num_iterations=0),
            sft=replace(config.sft, num_epochs=0),
            eval=replace(config.eval, num_tasks=settings.score_tasks),
        )
        self.settings, self.has_env = settings, has_env
        assert config.model.path is not None, "there is a model"
        self.source = config.model.path

    @cached_property
    def model_config(self) -> PreTrainedConfig:
        """The configuration of the dense model, as transformers loads it."""
        return load_config(self.source)

    @property
    def geometry(self) -> Geometry:
        """Its sizes."""
        return geometry_of(self.model_config)

    @cached_property
    def chat(self) -> ChatFormat:
        """Its tokenizer and template."""
        return load_chat(self.config, load_tokenizer(self.config), env=self.config.env.id)

    @cached_property
    def space(self) -> UniformSpace:
        """What is decided on."""
        return UniformSpace(self.geometry)

    @cached_property
    def num_sensitivities(self) -> int:
        """Evaluations that the table of the problem takes."""
        return num_sensitivities(self.space, self.geometry)

    @property
    def scores_tasks(self) -> bool:
        """Whether dense and smaller model are scored on held-out tasks."""
        return self.has_env and self.settings.score_tasks > 0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: says what.
            TaskSourceError: no plan meets a budget of bytes or parameters.
        """
        settings = self.settings
        geometry = self.geometry  # refuses families that cannot be sliced
        if settings.report_data is not None and settings.data is None:
            raise ConfigError("--report-data needs --data: name the file of the other splits.")
        if settings.data is None and not self.has_env:
            raise ConfigError(
                f"{self.source} belongs to no run, so nothing tells which texts it is for. Give "
                "text with --data FILE, or an environment with --env ID."
            )
        if settings.recover != "none" and not self.has_env:
            raise ConfigError(
                f"--recover {settings.recover} lets the smaller model answer prompts, and "
                f"{self.source} belongs to no run that has some. Name an environment with --env ID."
            )
        for file in (settings.data, settings.report_data):
            if file is not None and not Path(file).is_file():
                raise ConfigError(f"there is no file {file}. Name one with --data FILE.")
        self._check_int8()
        untimed = {kind: share for kind, share in settings.shares.items() if kind != "latency"}
        check_budget(cost_table(self.space, CostModel(geometry), self.source), untimed)
        if {"ppo", "ppo-cold"} & {*settings.searchers}:
            check_evaluations(settings.evaluations, self.num_sensitivities)
        _ = self.chat

    def _check_int8(self) -> None:
        if is_int8(self.source):
            raise ConfigError(
                f"{self.source} holds int8 weights, which cannot be sliced. Name the model that it "
                "was made from."
            )
        if not self.settings.int8:
            return
        try:
            check_int8()
        except ConfigError as error:
            raise ConfigError(f"{error}\nOr leave int8 out: --no-int8") from error

    def identity(self) -> dict[str, Any]:
        """Return what makes the result another one, by name, as JSON has it."""
        files = {
            f"file of {name}": fingerprint(Path(file))
            for name in ("data", "report_data")
            if (file := getattr(self.settings, name)) is not None
        }
        env = {"env": self.config.env.id, "env arguments": dict(self.config.env.kwargs)}
        return {
            **self.settings.identity(),
            "model": model_fingerprint(self.source),
            **files,
            **(env if self.has_env else {}),
        }


def model_fingerprint(source: str) -> Any:  # noqa: ANN401 - what JSON has
    """Return size and digest of every file of a model, by name; the id of one of the hub."""
    path = Path(source)
    if path.is_file():
        return fingerprint(path)
    if not path.is_dir():
        return source
    files = sorted({file for pattern in WEIGHTS for file in path.glob(pattern)})
    return {file.name: fingerprint(file) for file in files}


def check_budget(table: PlanTable, shares: dict[str, float]) -> None:
    """Refuse a budget that no plan meets.

    Args:
        table: of costs.
        shares: of the dense cost, by kind; nothing is checked where there is none.

    Raises:
        TaskSourceError: tells the least that a plan can have.
    """
    if not shares:
        return
    mask = BudgetMask(table, tuple(shares))
    dense = table.dense[mask.columns]
    if mask.feasible(np.array(list(shares.values())) * dense):
        return
    least = np.ceil((mask.least / dense).min(0) * 1000) / 1000
    possible = ", ".join(f"{kind}={value:.3f}" for kind, value in zip(shares, least, strict=True))
    budget = ", ".join(f"{kind}={share:g}" for kind, share in shares.items())
    raise TaskSourceError(
        f"no plan of {table.name} meets the budget {budget} of the dense model. The least that a "
        f"plan can have: {possible}. Give a larger budget."
    )
