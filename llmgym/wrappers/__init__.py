"""Wrappers: each overrides one half of the step, and acts the same alone and in a vector."""

from llmgym.wrappers.action import ExtractAnswer, StopAt, StripThink
from llmgym.wrappers.budget import TokenBudget
from llmgym.wrappers.length import LengthReward
from llmgym.wrappers.observation import FewShot, KeepTurns, SystemPrompt
from llmgym.wrappers.reward import (
    ClipReward,
    FormatReward,
    LengthPenalty,
    RepetitionPenalty,
    ScaleReward,
    SoftOverlong,
)

__all__ = [
    "ClipReward",
    "ExtractAnswer",
    "FewShot",
    "FormatReward",
    "KeepTurns",
    "LengthPenalty",
    "LengthReward",
    "RepetitionPenalty",
    "ScaleReward",
    "SoftOverlong",
    "StopAt",
    "StripThink",
    "SystemPrompt",
    "TokenBudget",
]
