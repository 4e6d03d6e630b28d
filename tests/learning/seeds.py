"""Which seeds of a claim run by default, and which where the slow part is asked for."""

from tests.slow import slow

DEFAULT, *SLOW = range(3)
SEEDS = [DEFAULT, *(slow(seed) for seed in SLOW)]
