"""A limit on the tokens of a whole episode; it overrides the `advance` half, and `reset`."""

from dataclasses import replace
from typing import Any, final

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from llmgym.env import LLMWrapper, Observation
from llmgym.errors import EnvContractError, EpisodeOverError
from llmgym.messages import Sample, StopReason
from llmgym.step import is_over


@final
class TokenBudget(LLMWrapper, RecordConstructorArgs):
    """Truncate an episode once its responses have used n sampled tokens.

    A plain `str` has no tokens and spends nothing.

    Args:
        env: what is wrapped.
        n: tokens of all responses of an episode together.
    """

    def __init__(self, env: gymnasium.Env, n: int) -> None:
        if n < 1:
            raise EnvContractError(f"TokenBudget needs 1 token or more; received {n}")
        RecordConstructorArgs.__init__(self, n=n)
        super().__init__(env)
        self.n = n
        self._spent = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode with the whole budget."""
        self._spent = 0
        return self.env.reset(seed=seed, options=options)

    def advance(self, action: str) -> tuple[Observation, bool, bool, Sample]:
        """Play one response and charge its tokens.

        Raises:
            EpisodeOverError: the budget was spent before.
        """
        if self._spent >= self.n:
            raise EpisodeOverError("This episode's budget is spent; call reset() before the step")
        obs, terminated, truncated, sample = self.inner.advance(action)
        self._spent += len(sample.response.token_ids)
        if self._spent >= self.n and not is_over(sample):
            sample = replace(sample, truncated=True, reason=StopReason.BUDGET)
            truncated = True
        return obs, terminated, truncated, sample
