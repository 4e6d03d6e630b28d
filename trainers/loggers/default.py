"""The loggers a run has when nobody chose others."""

from trainers.config import Config
from trainers.loggers.base import Logger
from trainers.loggers.console import ConsoleLogger
from trainers.loggers.jsonl import JsonlLogger
from trainers.loggers.tensorboard import TensorBoardLogger
from trainers.loggers.wandb import WandbLogger, mode


def default_loggers(config: Config, *, is_quiet: bool = False) -> list[Logger]:
    """Return JSON lines, W&B and TensorBoard where settings ask for them, and the console last.

    Raises:
        ConfigError: W&B is to be online without credentials, or tensorboard is not installed.
    """
    if config.log.wandb.enabled:
        mode()  # raises where it asks for what is not there, before anything starts
    trackers: list[Logger] = [WandbLogger()] if config.log.wandb.enabled else []
    trackers += [TensorBoardLogger()] if config.log.tensorboard else []
    return [JsonlLogger(), *trackers, ConsoleLogger(is_quiet=is_quiet)]
