"""`llmgym compress MODEL --budget latency=0.5`: a smaller model in a plain folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import tyro

from trainers.cli.options import RunArgument, parse_options
from trainers.config import Config, EnvConfig
from trainers.config.compression import CompressionSettings
from trainers.config.secrets import with_secrets
from trainers.errors import ConfigError


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction)
@dataclass(frozen=True, kw_only=True)
class Options:
    """Make a model smaller under a budget, and write it as a plain Hugging Face folder.

    The same command continues where an earlier one ended.
    """

    target: RunArgument = None
    """A run, a model folder or a hub id; the newest run without one."""
    settings: CompressionSettings
    env: str | None = None
    """Environment whose tasks the dense model writes to; that of its run without one."""
    clean: bool = False
    """Move an existing result of this name to NAME.old-1."""
    quiet: bool = False
    """Print the result only."""
    trust: bool = False
    """Let the code run that the settings of the model's run name; asked for once."""
    plugins: tuple[str, ...] = ()
    """A module that registers environments or rewards; repeat it."""


def main(argv: Sequence[str]) -> int:
    """Compress, and print what came of it."""
    options: Options = parse_options(Options, argv, "compress")
    from llmgym.registry import load_plugins
    from trainers.cli.folders import check_target
    from trainers.inference.targets import target_of

    load_plugins(options.plugins)
    target = target_of(options.target)
    if target.config.is_control:
        raise ConfigError(f"{target.name} is a policy on numbers; compress takes a language model.")
    config = _with_env(target.config, options.env)
    typed = [*options.plugins, *filter(None, [options.env])]
    check_target(target, config, typed=typed, command=["compress", *argv], trust=options.trust)
    model = replace(config.model, path=target.model)
    config = with_secrets(replace(config, model=model, tokenizer=target.tokenizer))
    from trainers.runner.compression.driver import compress
    from trainers.runner.compression.summary import summary_lines

    result = compress(
        config,
        options.settings,
        has_env=options.env is not None or target.run_dir is not None,
        clean=options.clean,
        say=_drop if options.quiet else _show,
    )
    if not result.summary:
        print(f"{result.run_dir}: stopped as asked. The same command continues.")
        return 0
    for line in summary_lines(result.run_dir, result.summary):
        print(line)
    from trainers.report.page import write_report

    print(f"report    {write_report([result.run_dir])}")
    return 0


def _with_env(config: Config, env: str | None) -> Config:
    """Return settings with another environment and its own reward, where one is named."""
    if env is None:
        return config
    return replace(config, envs=[EnvConfig(id=env)], rewards=Config().rewards)


def _show(text: str) -> None:
    print(text, flush=True)


def _drop(text: str) -> None:
    """Print nothing."""
