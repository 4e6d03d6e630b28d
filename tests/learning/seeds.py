"""Which seeds of a claim run by default, and which where the slow part is asked for."""

import pytest

DEFAULT, *SLOW = range(3)
SEEDS = [DEFAULT, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SLOW)]
