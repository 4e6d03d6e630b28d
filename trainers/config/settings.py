"""Every setting: frozen, strict and documented under each field. No torch, no tyro.

`files.py` reads and writes these as YAML; `llmgym schema` prints them. A value is checked
once, when it is built, and never repaired. What follows from other settings is a property.
"""

import datetime
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from trainers.config.backend import BackendConfig
from trainers.config.distill import DistillConfig, check_distill
from trainers.config.mixture import check_mixture
from trainers.config.ppo import RULES, Count, NonNegative, Positive, PPOConfig, Share, Whole
from trainers.config.reward_model import RewardModelConfig
from trainers.config.text import (
    DataConfig,
    EnvConfig,
    GenerationConfig,
    RewardConfig,
    TokenizerConfig,
)
from trainers.errors import ConfigError
from trainers.redaction.redact import hidden

PACKAGED = Path(__file__).parents[1] / "configs"
CONFIG_ROOT = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]


@dataclass(config=RULES, frozen=True, kw_only=True)
class RunConfig:
    """What a run is, where it lives and what its randomness starts from."""

    kind: Literal["text", "control"] = "text"
    """A language model in environments that speak text, or an actor-critic MLP in numeric ones: the
    stage of `trainers/runner/stages/ppo_KIND.py`."""
    name: Name = "default"
    """Folder of the run below `dir`; an existing one is refused unless resumed or cleaned."""
    dir: str = "runs"
    """Folder that holds all runs."""
    seed: Whole = 0
    """Seed of every random stream of the run."""
    date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")] | None = None
    """Day that chat templates print which print today's, YYYY-MM-DD; null: that on which the run
    starts, which its config.yaml keeps."""

    def __post_init__(self) -> None:
        """Refuse a day that no calendar has."""
        try:
            _ = self.day
        except ValueError as error:
            raise ConfigError(f"run.date {self.date} is no day: {error}.") from error

    @property
    def day(self) -> datetime.date | None:
        """The day of `date`."""
        return None if self.date is None else datetime.date.fromisoformat(self.date)


@dataclass(config=RULES, frozen=True, kw_only=True)
class DimensionsConfig:
    """Sizes of a Llama: a fresh model's, over its preset's; a `path`'s, for `llmgym plan`."""

    hidden_size: Count | None = None
    """Width of the residual stream."""
    intermediate_size: Count | None = None
    """Width inside a feed-forward block."""
    num_layers: Count | None = None
    """Decoder layers."""
    num_heads: Count | None = None
    """Attention heads."""
    num_kv_heads: Count | None = None
    """Heads of keys and values; null: num_heads."""
    head_dim: Count | None = None
    """Width of a head; null: hidden_size / num_heads."""
    tied: bool = True
    """Whether input and output embedding are one matrix."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class LoRAConfig:
    """Adapters (arXiv:2106.09685): thin matrices that learn, added to weights that do not."""

    rank: Whole = 0
    """Width of the thin matrices; 0: no adapters, every weight learns."""
    alpha: Positive = 32.0
    """Adapters are scaled by alpha / rank."""
    targets: list[str] = Field(default_factory=lambda: ["all-linear"], min_length=1)
    """Layers that get adapters: `all-linear` those of the body, `auto` those that peft names for
    the family, or names, or ends of names, such as `q_proj`."""
    critic: Literal["adapters", "whole"] = "adapters"
    """Whether a separate critic learns adapters of its own or all its weights."""

    def __post_init__(self) -> None:
        """Refuse two choices of layers at once."""
        for word in ("all-linear", "auto"):
            if word in self.targets and len(self.targets) > 1:
                raise ConfigError(
                    f"model.lora.targets {word} chooses layers by itself, got {self.targets}. "
                    "Leave it alone, or name layers only."
                )


@dataclass(config=RULES, frozen=True, kw_only=True)
class ModelConfig:
    """The policy: a model that exists, or a fresh one."""

    path: str | None = None
    """A Hugging Face folder, a hub id or a .gguf file; null builds a fresh `preset`."""
    preset: Literal["tiny", "small", "base"] = "tiny"
    """Fresh model: a Llama of about 1, 5 or 16 M parameters."""
    hidden_sizes: list[Count] = Field(default_factory=lambda: [64, 64])
    """Widths of the hidden layers of the MLP of `run.kind control`."""
    vocab_size: Annotated[int, Field(ge=300)] | None = None
    """Tokens of a tokenizer trained for a fresh model; null: 512 tiny, 4096 small and base. With
    `dimensions` of a `path`: the tokens it embeds."""
    dimensions: DimensionsConfig = Field(default_factory=DimensionsConfig)
    """Sizes over the preset's; of a `path`, for `llmgym plan` where it cannot be read."""
    config: str | None = None
    """A config.json of `path`, for `llmgym plan` where `path` cannot be read."""
    context: Count = 1024
    """Maximum length of a sequence of a fresh model, in tokens."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the forward pass; auto: bfloat16 where the hardware multiplies it natively, but
    float32 for models below 4 M parameters on a CPU. Weights are always float32."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel; auto leaves the choice to transformers."""
    lora: LoRAConfig = Field(default_factory=LoRAConfig)
    """Adapters instead of all weights."""

    def __post_init__(self) -> None:
        """Refuse a description of a model that is not named."""
        if self.config is not None and self.path is None:
            raise ConfigError(
                f"model.config {self.config} describes model.path, which is not set. Set it to "
                "the model's folder or hub id, or drop model.config."
            )


@dataclass(config=RULES, frozen=True, kw_only=True)
class SFTConfig:
    """Supervised stage: next-token cross-entropy on the responses of demonstrations."""

    num_epochs: Whole = 0
    """Passes over the demonstrations; 0 leaves the stage out."""
    batch_size: Count = 32
    """Rows of one optimizer step, over all ranks."""
    learning_rate: Positive = 2.0e-5
    """Peak rate; 1e-3 suits a fresh tiny model."""
    warmup_fraction: Share = 0.03
    """Share of the steps with a linearly rising rate; a cosine to 10 % follows."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive | None = 1.0
    """Largest gradient norm; null: no clipping."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the rows that are held out, to measure the loss on."""
    stop_loss: Positive | None = None
    """Loss on those rows, in nats per token, at which the stage ends after an epoch; null: off."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class EvalConfig:
    """Greedy evaluation on tasks that are held out."""

    every: Whole = 20
    """Iterations between evaluations; 0: before and after only."""
    num_tasks: Whole = 512
    """Held-out tasks (control: episodes); 0: no evaluation."""
    patience: Count | None = None
    """Evaluations in a row without improvement after which the run ends as converged; null: off."""
    min_delta: NonNegative = 0.0
    """By how much a held-out score must exceed the last improvement to be one."""
    kwargs: dict[str, Any] = Field(default_factory=lambda: {"split": "test"})
    """Arguments that make the environment's tasks held out, over those of `envs`; in control runs
    `split: test` has no meaning and is left out."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class CheckpointConfig:
    """What is saved to continue from."""

    every: Whole = 10
    """Iterations between checkpoints; 0: at the end only."""
    every_minutes: Positive | None = None
    """Minutes after which one is saved as well; null: off."""
    keep_last: Count = 3
    """Checkpoints kept of a stage."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases: offline unless logged in; WANDB_* variables win."""

    enabled: bool = True
    """Write a W&B run beside metrics.jsonl."""
    project: str = "llmgym"
    """Project of the run."""
    group: str | None = None
    """Group of the run, for sweeps and seeds."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class LogConfig:
    """What is printed and written; true for a name is the logger of that name."""

    every: Count = 1
    """Iterations between lines on a console that is no terminal."""
    samples_every: Whole = 10
    """Iterations between samples shown and tabled; 0: never."""
    sample_rows: Annotated[int, Field(ge=1, le=16)] = 16
    """Maximum number of rows of such a table."""
    tensorboard: bool = False
    """Write TensorBoard events to tensorboard/ of the run folder; needs the package tensorboard."""
    wandb: WandbConfig = Field(default_factory=WandbConfig)
    """Weights & Biases."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class Config:
    """The whole tree."""

    run: RunConfig = Field(default_factory=RunConfig)
    """Folder and seed."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The policy."""
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    """The tokenizer."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Rows to learn from. Short form: --data FILE."""
    envs: list[EnvConfig] = Field(default_factory=lambda: [EnvConfig()], min_length=1)
    """The environments of the run: one, or a mixture of several, each with its share of a batch."""
    rewards: list[RewardConfig] = Field(default_factory=lambda: [RewardConfig()])
    """Rewards, summed by weight; they replace the environment's own."""
    sft: SFTConfig = Field(default_factory=SFTConfig)
    """Supervised stage."""
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig)
    """Reward model stage."""
    ppo: PPOConfig = Field(default_factory=PPOConfig)
    """PPO stage."""
    distill: DistillConfig = Field(default_factory=DistillConfig)
    """Teacher of the PPO stage, or of what takes its place."""
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    """Sampling."""
    backend: BackendConfig = Field(default_factory=BackendConfig)
    """Execution."""
    eval: EvalConfig = Field(default_factory=EvalConfig)
    """Evaluation."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    """Checkpoints."""
    log: LogConfig = Field(default_factory=LogConfig)
    """Logging."""

    def __post_init__(self) -> None:
        """Refuse what numeric environments cannot do, and two models in one run."""
        if self.is_control and self.model.path is not None:
            raise ConfigError(
                f"run.kind control trains a fresh MLP, got model.path {self.model.path}. Set "
                "--run.kind text to train that model on text, or drop the path."
            )
        if self.is_control and self.model.lora.rank:
            raise ConfigError(
                f"model.lora.rank {self.model.lora.rank} adapts a language model that exists, and "
                "run.kind control trains a fresh MLP. Set --model.lora.rank 0."
            )
        if self.is_control and self.ppo.on_truncation == "mask":
            raise ConfigError(
                "ppo.on_truncation mask leaves out whole episodes, and one of run.kind control "
                "lasts longer than a rollout: its first steps were learned from already. Choose "
                "bootstrap, score or penalty."
            )
        check_mixture(self.envs, num_prompts=self.ppo.num_prompts, is_control=self.is_control)
        if self.reward_model.num_epochs and (self.sft.num_epochs or self.ppo.num_iterations):
            raise ConfigError(
                "a reward model is learned in a run of its own, so reward_model.num_epochs "
                f"{self.reward_model.num_epochs} needs ppo.num_iterations 0 and sft.num_epochs 0. "
                "llmgym reward-model sets them."
            )

        check_distill(self.distill, self.ppo)
        if self.is_control and self.distill.teacher is not None:
            raise ConfigError(
                f"run.kind control has no tokens for distill.teacher {self.distill.teacher}. Set "
                "--run.kind text, or drop the teacher."
            )

    @property
    def is_control(self) -> bool:
        """True for numeric environments with an actor-critic MLP."""
        return self.run.kind == "control"

    @property
    def reuses_logprobs(self) -> bool:
        """True where the only step of an iteration is exactly on-policy: the ratio is 1."""
        ppo, is_older = self.ppo, self.generation.ahead > 0
        is_single = ppo.num_epochs == ppo.num_minibatches == 1
        return ppo.old_logprobs == "auto" and is_single and not is_older

    @property
    def env(self) -> EnvConfig:
        """The environment, or the first one of a mixture."""
        return self.envs[0]

    @property
    def alone(self) -> "list[Config]":
        """One config for each environment, as if the run had no other."""
        if len(self.envs) == 1:
            return [self]
        return [replace(self, envs=[replace(env, weight=1.0)]) for env in self.envs]

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of all settings but secrets; in every checkpoint."""
        text = json.dumps(hidden(SCHEMA.dump_python(self, mode="json")), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


SCHEMA: TypeAdapter[Config] = TypeAdapter(Config)
