"""PPO for language-model and classic environments, from Python: `trainers.run(config)`.

Importing this package imports nothing else.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

MOVED = {
    "config_backend": "config",
    "config_files": "config.files",
    "config_ppo": "config.ppo",
    "config_schema": "config.schema",
    "environments": "collect.environments",
    "evaluate": "evaluation",
    "launcher": "distributed.launcher",
    "reward_model": "supervised.reward_model",
    "run_folder": "run_dir.folder",
    "run_record": "run_dir.record",
    "sft": "supervised.sft",
}
"""Modules of version 0.1 and where they are now."""


def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the types are those of the runner
    """Train; see `trainers.runner.run.run`, whose arguments and result these are.

    Here so that a notebook needs one name, and imported late so that `trainers.config` stays
    free of torch.
    """
    from trainers.runner.run import run as run_stages

    return run_stages(*args, **kwargs)


class _Moved(MetaPathFinder):
    """Names the new place of a module that is nowhere else."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:  # noqa: ANN401
        """Refuse a former name.

        Raises:
            ModuleNotFoundError: says where the module is.
        """
        former = name.removeprefix("trainers.")
        if name != former and former in MOVED:
            raise ModuleNotFoundError(f"{name} is now trainers.{MOVED[former]}", name=name)


sys.meta_path.append(_Moved())
