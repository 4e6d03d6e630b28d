"""What a run on DeepSpeed needs: its settings, looked at early, and the JSON of each engine."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainers.backends.torch import OptimizerSettings
from trainers.backends.zero.builds import check_locks
from trainers.backends.zero.engine import check_nvme, import_deepspeed, needs_torch_adam
from trainers.backends.zero.json import engine_json, frozen_json, tuning
from trainers.config import Config
from trainers.distributed.collectives import World
from trainers.errors import ConfigError
from trainers.models.shards import shared_out
from trainers.redaction.redact import hidden
from trainers.redaction.text_files import write


def check_zero(config: Config, world: World) -> None:
    """Refuse what DeepSpeed cannot do, or would leave out without a word, before weights load.

    Raises:
        ConfigError: a setting, or a line of the user's file.
        BackendError: deepspeed, or what NVMe needs, is not there; a build was killed.
    """
    if config.backend.name != "deepspeed":
        return
    if config.is_control:
        raise ConfigError(
            "run.kind control is trained by plain torch, got backend.name deepspeed. Set "
            "--backend.name torch."
        )
    tuning(config, world.size)
    import_deepspeed()
    if torch.cuda.is_available() or config.backend.zero.nvme_path is not None:
        check_locks()  # a CPU takes torch's Adam, and builds nothing
    if config.backend.zero.nvme_path is not None:
        check_nvme(Path(config.backend.zero.nvme_path))


def loading(config: Config) -> AbstractContextManager[None]:
    """Return what models load under: at stage 3 they are shared out while they do, else whole."""
    is_shared_out = config.backend.name == "deepspeed" and config.backend.zero.stage == 3
    return shared_out() if is_shared_out else nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """The JSON of a run's engines.

    Attributes:
        config: of the run.
        is_bf16: whether products are in bfloat16.
        more: what the user's file adds.
        on_gpu: whether engines have one, here or where the run is meant for.
    """

    config: Config
    is_bf16: bool
    more: Mapping[str, Any]
    on_gpu: bool

    @classmethod
    def of(
        cls, config: Config, world: World, dtype: torch.dtype, *, on_gpu: bool | None = None
    ) -> "Zero | None":
        """Return that of a run, here unless `on_gpu` is given; None where the backend is another.

        Raises:
            ConfigError: a line of the user's file.
        """
        if config.backend.name != "deepspeed":
            return None
        return cls(
            config=config,
            is_bf16=dtype == torch.bfloat16,
            more=tuning(config, world.size),
            on_gpu=torch.cuda.is_available() if on_gpu is None else on_gpu,
        )

    @property
    def stage(self) -> int:
        """ZeRO's stage."""
        return self.config.backend.zero.stage

    @property
    def has_bf16_weights(self) -> bool:
        """True where weights are bfloat16; stage 0 has no masters, so it casts products alone."""
        return self.is_bf16 and self.stage > 0

    def holds(self, num_bytes: int) -> bool:
        """Tell whether each rank may hold a copy of this size while text is written."""
        return num_bytes <= self.config.backend.zero.gather_gb * 2**30

    def trained(self, settings: OptimizerSettings) -> dict[str, Any]:
        """Return the JSON of an engine that trains."""
        zero = self.config.backend.zero
        adamw = {
            "lr": settings.learning_rate,
            "betas": list(settings.betas),
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
        }
        is_there = self.on_gpu and not torch.cuda.is_available()  # then with a compiler
        if not is_there and needs_torch_adam(zero.offload):
            adamw["torch_adam"] = True
        return engine_json(
            zero,
            adamw,
            max_grad_norm=settings.max_grad_norm,
            is_bf16=self.has_bf16_weights,
            on_gpu=self.on_gpu,
            tuning=self.more,
        )

    def frozen(self) -> dict[str, Any]:
        """Return the JSON of a model at stage 3 that does not train."""
        return frozen_json(
            self.config.backend.zero,
            is_bf16=self.has_bf16_weights,
            on_gpu=self.on_gpu,
            tuning=self.more,
        )


def save_json(file: Path, engines: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what DeepSpeed was given, by engine."""
    write(file, json.dumps(hidden(engines), indent=2) + "\n")
