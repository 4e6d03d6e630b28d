"""PPO for language-model and classic environments, from Python: `trainers.run(config)`.

Importing this package imports nothing else.
"""

from typing import Any


def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the types are those of the runner
    """Train; see `trainers.runner.run`, whose arguments and result these are.

    Here so that a notebook needs one name, and imported late so that `trainers.config` stays
    free of torch.
    """
    from trainers.runner.run import run as run_stages

    return run_stages(*args, **kwargs)
