"""The settings of what runs the models: the library, micro-batches, ZeRO."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainers.config.ppo import RULES, Count, NonNegative, Positive
from trainers.errors import ConfigError


@dataclass(config=RULES, frozen=True, kw_only=True)
class ZeroConfig:
    """DeepSpeed's ZeRO (arXiv:1910.02054): what ranks share, and what leaves the GPU."""

    stage: Literal[0, 1, 2, 3] = 2
    """What every rank holds only its share of: 0 nothing, 1 optimizer state, 2 gradients as well,
    3 weights as well."""
    offload: Literal["none", "optimizer", "params"] = "none"
    """What lies in host memory: nothing, the optimizer's state, or weights (stage 3) as well."""
    nvme_path: str | None = None
    """A folder on NVMe that takes what is offloaded, at stage 3; null: host memory."""
    gather_gb: NonNegative = 16.0
    """Stage 3: largest copy of the policy, in GiB, that a rank may hold while it writes text. A
    larger policy is gathered layer by layer for every token; 0: always so."""
    config: str | None = None
    """A DeepSpeed JSON file, for what has no setting here. Short form: --deepspeed_config."""

    def __post_init__(self) -> None:
        """Refuse what DeepSpeed would leave out without a word."""
        least = {"none": 0, "optimizer": 1, "params": 3}[self.offload]
        if self.stage < least:
            what = {1: "no optimizer state is", 3: "no weights are"}[least]
            raise ConfigError(
                f"backend.zero.offload {self.offload} needs stage {least}"
                f"{' or higher' if least < 3 else ''}: at stage {self.stage} {what} offloaded, and "
                f"DeepSpeed would say nothing. Set --backend.zero.stage {max(least, 2)}, or "
                "--backend.zero.offload none."
            )
        if self.nvme_path is not None and (self.stage < 3 or self.offload == "none"):
            raise ConfigError(
                f"backend.zero.nvme_path {self.nvme_path} has no effect at stage {self.stage} with "
                f"offload {self.offload}. Set --backend.zero.stage 3 and --backend.zero.offload "
                "optimizer or params, or drop it."
            )


@dataclass(config=RULES, frozen=True, kw_only=True)
class BackendConfig:
    """What runs the models."""

    name: Literal["torch", "deepspeed"] = "torch"
    """Plain torch, with every weight on every rank; or DeepSpeed, as `zero` says."""
    zero: ZeroConfig = Field(default_factory=ZeroConfig)
    """ZeRO; only `deepspeed` reads it."""
    micro_batch_tokens: Count = 4096
    """Maximum number of tokens of a forward and backward pass of a rank; padding is included where
    it is computed."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Put the rows of a pass end to end: no padding is computed, and a prompt that rows share is
    computed once. Exact up to rounding. auto: on a CPU, for models that compute the same of packed
    rows, which is tried at the start."""
    logprob_chunk: Count | None = None
    """Positions whose logits exist at once; null: as many as 128 MiB hold in float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    offload_between_phases: bool = False
    """Move moments and masters from the GPU to host memory while text is written and scored, and
    back for the update: a lower peak where writing is what takes most, more time. Plain torch, or
    stages 2 and 3 (with DeepSpeed's own Adam) without offload."""
    timeout_seconds: Positive = 1800.0
    """How long a rank waits for the others."""
    nodes: Count = 1
    """Machines of the run, each with as many `gpus`. Short form: --nodes."""
    gpus: Count | None = None
    """GPUs of each of them, a process a GPU: `llmgym plan` counts on them, `llmgym launch` starts
    them, and a run that finds another number of processes is refused; null: those there are. Short
    form: --gpus."""

    def __post_init__(self) -> None:
        """Refuse a DeepSpeed file that nothing would read, and machines of unknown size."""
        if self.nodes > 1 and self.gpus is None:
            raise ConfigError(
                f"backend.nodes {self.nodes} needs the GPUs of a machine. Add --backend.gpus 8."
            )
        if self.zero.config is not None and self.name != "deepspeed":
            raise ConfigError(
                f"backend.zero.config {self.zero.config} is read by DeepSpeed only, and "
                f"backend.name is {self.name}. Add --backend.name deepspeed, or drop the file."
            )

    @property
    def ranks(self) -> int | None:
        """Processes of all machines; None: those there are."""
        return None if self.gpus is None else self.nodes * self.gpus
