"""Worker: the machine's limit: a product of two 2,048 x 2,048 matrices, in GFLOP per CPU second."""

import time

import torch

from scripts.bench.turns import Turns

SIZE = 2048
REPEATS = 5


def rate(dtype: torch.dtype) -> float:
    """Return GFLOP per CPU second: the best of a few products, since noise only takes away."""
    left, right = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    spent = []
    for _ in range(REPEATS):
        began = time.process_time()
        torch.mm(left, right)
        spent.append(time.process_time() - began)
    return 2.0 * SIZE**3 / min(spent) / 1e9


def main() -> None:
    """Measure until the pipe is closed."""
    turns = Turns()
    turns.begin()
    while True:
        turns.end(**{name: rate(getattr(torch, name)) for name in ("float32", "bfloat16")})


if __name__ == "__main__":
    main()
