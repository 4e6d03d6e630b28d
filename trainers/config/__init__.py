"""Every setting: frozen, strict, documented under each field. No torch, no tyro."""

from trainers.config.backend import BackendConfig
from trainers.config.distill import DistillConfig
from trainers.config.ppo import PPOConfig
from trainers.config.reward_model import RewardModelConfig
from trainers.config.settings import (
    SCHEMA,
    CheckpointConfig,
    Config,
    DimensionsConfig,
    EvalConfig,
    LogConfig,
    LoRAConfig,
    ModelConfig,
    RunConfig,
    SFTConfig,
    WandbConfig,
)
from trainers.config.text import (
    CurriculumConfig,
    DataConfig,
    EnvConfig,
    GenerationConfig,
    RewardConfig,
    SpeculativeConfig,
    TokenizerConfig,
    VllmConfig,
)

__all__ = [
    "SCHEMA",
    "BackendConfig",
    "CheckpointConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "DimensionsConfig",
    "DistillConfig",
    "EnvConfig",
    "EvalConfig",
    "GenerationConfig",
    "LoRAConfig",
    "LogConfig",
    "ModelConfig",
    "PPOConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RunConfig",
    "SFTConfig",
    "SpeculativeConfig",
    "TokenizerConfig",
    "VllmConfig",
    "WandbConfig",
]
