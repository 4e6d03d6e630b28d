"""The loggers a run has when nobody chose others."""

from trainers.config import Config
from trainers.loggers.base import Logger
from trainers.loggers.console import ConsoleLogger
from trainers.loggers.jsonl import JsonlLogger
from trainers.loggers.wandb import WandbLogger, mode


def default_loggers(config: Config, *, is_quiet: bool = False) -> list[Logger]:
    """Return JSON lines, W&B where `log.wandb.enabled`, and the console last.

    Raises:
        ConfigError: W&B is to be online, and there are no credentials.
    """
    if config.log.wandb.enabled:
        mode()  # raises where it asks for what is not there, before anything starts
    tracker = [WandbLogger()] if config.log.wandb.enabled else []
    return [JsonlLogger(), *tracker, ConsoleLogger(is_quiet=is_quiet)]
