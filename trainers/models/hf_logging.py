"""What transformers prints and we do not."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as noise


def without_progress_bars() -> None:
    """Switch off the bars and the advice of transformers, in this process for good."""
    noise.disable_progress_bar()
    noise.set_verbosity_error()


@contextmanager
def quietly() -> Iterator[None]:
    """Switch them off, and leave them as they were: the process belongs to the caller."""
    had_bars, verbosity = noise.is_progress_bar_enabled(), noise.get_verbosity()
    without_progress_bars()
    try:
        yield
    finally:
        noise.set_verbosity(verbosity)
        if had_bars:
            noise.enable_progress_bar()
