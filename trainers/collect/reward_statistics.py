"""Running statistics of rewards: they stand still within a rollout, and learn from it after."""

from collections.abc import Mapping
from typing import Any, final

import torch

from llmgym.env import core_env
from llmgym.rewards.scale import Scale, running_scales
from llmgym.vector import LLMVectorEnv
from trainers.distributed.collectives import global_sum


@final
class RewardScales:
    """Every running normalization among the rewards of environments; most runs have none.

    Args:
        envs: whose rewards are looked through.
    """

    def __init__(self, envs: LLMVectorEnv) -> None:
        self._scales: dict[str, Scale] = {}
        for env in envs.envs:
            for name, scale in running_scales(core_env(env).reward).items():
                if not any(scale is known for known in self._scales.values()):
                    number = sum(known.partition("#")[0] == name for known in self._scales)
                    self._scales[f"{name}#{number}" if number else name] = scale

    def forget(self) -> None:
        """Drop the scores since the last rollout: evaluation's."""
        for scale in self._scales.values():
            scale.observed()

    def learn(self) -> None:
        """Take the rollout's scores, of all ranks, into the statistics; a collective."""
        for scale in self._scales.values():
            sums = global_sum(torch.tensor(scale.observed(), dtype=torch.float64))
            count, total, squares = sums.tolist()
            scale.absorb((count, total, squares))

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the statistics by the names of their rewards."""
        return {name: scale.state_dict() for name, scale in self._scales.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the statistics."""
        for name, scale in self._scales.items():
            scale.load_state_dict(state[name])
