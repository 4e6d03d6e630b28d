"""`llmgym train`, one of its stages alone, or `llmgym plan`: from what was typed to a run."""

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.cli.arguments import OPTIONS, Launch, read_arguments
from trainers.config import Config, schema
from trainers.config.files import changed_settings, layer, preset, presets, purpose, read
from trainers.config.secrets import with_secrets, without_secrets
from trainers.run_dir.record import dated

HELP_WIDTH = 80
FRESH_EPOCHS = 3
FRESH_RATE = 1.0e-3


def config_of(launch: Launch, verb: str = "train") -> Config:
    """Return the settings: preset, then files, then the command line.

    Raises:
        ConfigError: with every mistake at once.
    """
    files = [preset(launch.preset or "default"), *map(layer, launch.files)]
    if verb in ("train", "plan"):
        return read(files, launch.overrides)
    others, alone = STAGE_OVERRIDES[verb]
    config = read(files, {**others, **launch.overrides})
    return read(files, {**others, **alone(config), **launch.overrides})


def _sft_alone(config: Config) -> dict[str, Any]:
    """Return what makes the supervised stage run alone, where nothing else was asked for."""
    layer: dict[str, Any] = {}
    default = Config()
    if config.run.name == default.run.name:
        layer["run.name"] = "sft"
    if not config.sft.num_epochs:
        layer["sft.num_epochs"] = FRESH_EPOCHS
    is_default_rate = config.sft.learning_rate == default.sft.learning_rate
    if config.model.path is None and is_default_rate:
        layer["sft.learning_rate"] = FRESH_RATE
    if config.data.path is not None and config.envs == default.envs:
        layer["eval.num_tasks"] = 0  # the default environment has nothing to do with the file
    return layer


def _reward_model_alone(config: Config) -> dict[str, Any]:
    """Return what makes the reward model stage run, where nothing else was asked for."""
    layer: dict[str, Any] = {}
    default, is_fresh = Config(), config.model.path is None
    if config.run.name == default.run.name:
        layer["run.name"] = "reward-model"
    if not config.reward_model.num_epochs:
        layer["reward_model.num_epochs"] = FRESH_EPOCHS if is_fresh else 1
    is_default_rate = config.reward_model.learning_rate == default.reward_model.learning_rate
    if is_fresh and is_default_rate:
        layer["reward_model.learning_rate"] = FRESH_RATE
    return layer


STAGE_OVERRIDES: Mapping[str, tuple[Mapping[str, Any], Callable[[Config], dict[str, Any]]]] = {
    "sft": ({"ppo.num_iterations": 0, "reward_model.num_epochs": 0}, _sft_alone),
    "reward-model": ({"ppo.num_iterations": 0, "sft.num_epochs": 0}, _reward_model_alone),
}
"""What a verb for one stage leaves out, and what it sets where nothing else was asked for."""


def help_text(verb: str, config: Config) -> str:
    """Return usage, options, presets and every setting with its value in `config`."""
    lines = [f"Usage: llmgym {verb} [PRESET] [OPTIONS] [--SETTING VALUE]...", "", "Options:"]
    for name, what in OPTIONS.items():
        lines += _wrapped(f"  {name:<27} ", what)
    lines += ["", "Presets (the first word; `default` without one):"]
    for name, file in presets().items():
        lines += _wrapped(f"  {name:<20} ", purpose(file))
    lines += ["", "Settings, with their values now. Preset < files < command line."]
    tree = without_secrets(config)
    section: schema.Path = ()
    for leaf in schema.leaves():
        if leaf[:1] != section:
            section = leaf[:1]
            lines += ["", f"{section[0]}:"]
        lines += _setting_lines(leaf, tree)
    lines += ["", "Arguments of environments and rewards: --envs.0.kwargs.NAME VALUE"]
    return "\n".join(lines)


def _wrapped(title: str, text: str) -> list[str]:
    indent = " " * len(title)
    return textwrap.wrap(text, HELP_WIDTH, initial_indent=title, subsequent_indent=indent)


def _setting_lines(leaf: schema.Path, tree: Any) -> list[str]:  # noqa: ANN401
    description = " ".join((schema.at(leaf) or {}).get("description", "").split())
    name = schema.dotted(leaf).replace("_", "-")
    value = schema.setting_text(schema.value_at(tree, leaf))
    return [f"  --{name} {value}", *_wrapped(" " * 8, description)]


def _announce(config: Config, launch: Launch) -> None:
    """Print what differs from the preset, or from the run that goes on; on rank 0."""
    if launch.is_quiet or os.environ.get("RANK", "0") != "0":
        return
    before = Path(config.run.dir) / config.run.name / "config.yaml"
    is_known = bool(launch.resume) and before.is_file()
    now = dated(config, resume=True) if is_known else config
    for change in changed_settings(
        now, read([before if is_known else preset(launch.preset or "default")])
    ):
        print(f"changed  {change}")


def main(argv: Sequence[str], verb: str = "train") -> int:
    """Run the stages of the settings, or forecast them."""
    launch = read_arguments(argv, verb)
    config = config_of(launch, verb)
    if launch.is_help:
        print(help_text(verb, config))
        return 0
    if launch.plugins:
        from llmgym.registry import load_plugins

        load_plugins(launch.plugins)
    from trainers.cli.early import check_plan, check_start
    from trainers.cli.folders import check_files

    check_files(launch, config, ["llmgym", verb, *argv])

    if launch.is_plan:
        check_plan(config)
        from trainers.cli.plan import show_plan

        return show_plan(config, launch)
    config = with_secrets(config)
    check_start(config, is_new=not (launch.resume or launch.clean))
    _announce(config, launch)
    from trainers.loggers.default import default_loggers
    from trainers.runner.run import run

    run(
        config,
        resume=Path(launch.resume) if isinstance(launch.resume, str) else launch.resume,
        clean=launch.clean,
        loggers=default_loggers(config, is_quiet=launch.is_quiet),
    )
    return 0
