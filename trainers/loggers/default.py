"""The loggers a run has when nobody chose others."""

from dataclasses import fields

from llmgym.addresses import load
from trainers.config import Config
from trainers.config.settings import LogConfig
from trainers.loggers.base import Logger
from trainers.loggers.console import ConsoleLogger
from trainers.loggers.jsonl import JsonlLogger
from trainers.loggers.wandb import WandbLogger, mode


def default_loggers(config: Config, *, is_quiet: bool = False) -> list[Logger]:
    """Return JSON lines, W&B and others where settings ask for them, and the console last.

    `log.NAME true` is the logger that `trainers/loggers/NAME.py` makes by `make_logger()`.

    Raises:
        ConfigError: W&B is to be online without credentials, or tensorboard is not installed.
    """
    if config.log.wandb.enabled:
        mode()  # raises where it asks for what is not there, before anything starts
    trackers: list[Logger] = [WandbLogger()] if config.log.wandb.enabled else []
    for field in fields(LogConfig):
        if getattr(config.log, field.name) is True:
            trackers.append(load(f"trainers.loggers.{field.name}:make_logger")())
    return [JsonlLogger(), *trackers, ConsoleLogger(is_quiet=is_quiet)]
