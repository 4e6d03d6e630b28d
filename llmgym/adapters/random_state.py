"""A random state of its own for code that draws from Python's and NumPy's global generators."""

import random
import threading
from types import TracebackType
from typing import Any, final

import numpy as np

_LOCK = threading.RLock()
"""The global generators belong to one slot at a time."""


@final
class OwnRandom:
    """What is called inside draws from this state, and leaves the global one as it was.

    Args:
        seed: of both generators, in [0, 2**32).
    """

    def __init__(self, seed: int) -> None:
        self._python: Any = random.Random(seed).getstate()
        self._numpy: Any = np.random.RandomState(seed).get_state()
        self._outside: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        _LOCK.acquire()
        self._outside.append((random.getstate(), np.random.get_state()))  # noqa: NPY002
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        python, numpy = self._outside.pop()
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        _LOCK.release()
