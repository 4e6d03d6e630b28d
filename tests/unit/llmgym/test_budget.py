"""The wrapper that ends an episode when its tokens are spent."""

from pathlib import Path

import pytest

from llmgym.addresses import load
from llmgym.errors import EpisodeOverError
from llmgym.messages import Completion
from llmgym.wrappers import (
    TokenBudget,
)

TOYS = Path(__file__).parent / "toys.py"
say, guess = (load(f"{TOYS}:{name}") for name in ("say", "guess"))


def test_a_spent_budget_truncates_the_episode_for_good():
    env = TokenBudget(guess(), 5)
    env.reset(seed=0)
    assert env.step(Completion("no", token_ids=(1,) * 4))[2:4] == (False, False)
    *_, terminated, truncated, info = env.step(Completion("no", token_ids=(1,)))
    assert (terminated, truncated, info["stop_reason"]) == (False, True, "budget")
    with pytest.raises(EpisodeOverError, match="budget"):
        env.step("no")
    env.reset()
    assert not env.step("no")[3]


def test_a_finished_answer_is_not_truncated_by_the_budget():
    env = TokenBudget(say(), 1)
    env.reset(options={"index": 0})
    _, reward, terminated, truncated, _ = env.step(Completion("red", token_ids=(1, 2, 3)))
    assert (reward, terminated, truncated) == (1.0, True, False)
