"""Ids that a test registers and that are gone after it."""

import gymnasium as gym
import pytest

from llmgym import registry


@pytest.fixture
def registered():
    """Register a target under an id that is its own for this test, and return the id."""
    made = []

    def register(target, id=None, **kwargs):
        id = id or f"toy/Toy{len(made)}-v0"
        registry.register(id, target, **kwargs)
        made.append(id)
        return id

    yield register
    for id in made:
        gym.registry.pop(id, None)
        registry._TAGS.pop(id, None)
