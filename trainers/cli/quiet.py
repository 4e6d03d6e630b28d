"""What other libraries print and we do not."""


def without_progress_bars() -> None:
    """Switch off the bars that transformers draws while it reads and writes files."""
    from transformers.utils import logging as noise

    noise.disable_progress_bar()
    noise.set_verbosity_error()
