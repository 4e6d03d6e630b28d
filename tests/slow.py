"""A case that runs only where the slow part is asked for."""

import pytest


def slow(*values):
    """Return a case of `parametrize` for `-m slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)
